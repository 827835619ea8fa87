"""Tokens that a request allows or forbids: ``allowed_token_ids`` and ``bad_words``, as in vLLM."""

from collections.abc import Sequence

import numpy as np

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.llm.history import WORD, all_but
from ziggurat.serve.llm.sampling import SamplingParams


class TokenRules:
    """Bit masks of the tokens that may come next, by the tokens that came.

    Args:
        params: names the tokens and texts.
        tokenizer: turns the texts into tokens.
        vocab: number of tokens.
    """

    def __init__(self, params: SamplingParams, tokenizer: HuggingFaceTokenizer, vocab: int):
        self._always = all_but([], vocab)
        if params.allowed_token_ids:
            self._always[:] = 0
            for token in params.allowed_token_ids:
                self._always[token // WORD] |= np.uint32(1 << (token % WORD))
        self._bad = [ids for word in params.bad_words for ids in spellings(tokenizer, word)]

    @classmethod
    def of(
        cls, params: SamplingParams, tokenizer: HuggingFaceTokenizer, vocab: int
    ) -> "TokenRules | None":
        """Rules of a request; ``None``: all tokens may come."""
        some = params.allowed_token_ids or params.bad_words
        return cls(params, tokenizer, vocab) if some else None

    def mask(self, output: Sequence[int]) -> np.ndarray:
        """Bit mask of the ids that may follow the tokens generated so far."""
        mask = self._always
        for ids in self._bad:
            *before, last = ids
            if not before or list(output[-len(before) :]) == before:
                mask = mask.copy() if mask is self._always else mask
                mask[last // WORD] &= ~np.uint32(1 << (last % WORD))
        return mask


def spellings(tokenizer: HuggingFaceTokenizer, word: str) -> list[list[int]]:
    """Token sequences that a word has at the beginning of a text and within it.

    As vLLM: with a space before it only where that changes the first token and not their number,
    so that a lone space is never forbidden.
    """
    bare = tokenizer.encode(word.lstrip(), add_special_tokens=False)
    spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
    found = [bare] if bare else []
    if spaced and bare and spaced[0] != bare[0] and len(spaced) == len(bare):
        found.append(spaced)
    return found
