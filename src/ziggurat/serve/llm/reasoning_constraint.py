"""Constraint that begins after the reasoning: structured output and forced calls of models that
think first.

While a model reasons, every token may come but those that would end the answer, so that what is
generated to its end has its form. An answer that may have reasoning begins with either the opening
tag or the form itself.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import UInt32

from ziggurat.data import HuggingFaceTokenizer, StreamDecoder
from ziggurat.serve.llm.constraint import Constraint
from ziggurat.serve.llm.history import WORD, all_but
from ziggurat.serve.llm.reasoning_parsers import ReasoningParser


class AfterReasoning:
    """A :class:`~ziggurat.serve.llm.constraint.Constraint` on what follows the reasoning.

    Args:
        make: makes the constraint of the answer itself.
        parser: of the model's reasoning.
        opened: whether the prompt ends within the reasoning; ``None``: before it.
        tokenizer: the model's.
        vocab: number of the model's logits.
    """

    def __init__(
        self,
        make: Callable[[], Constraint],
        parser: ReasoningParser,
        opened: bool | None,
        tokenizer: HuggingFaceTokenizer,
        vocab: int,
    ):
        self._make, self._state = make, self._first(opened)
        self._inner = None if self._state == "reasoning" else make()
        self._tag = tokenizer.encode(parser.tags[0], add_special_tokens=False)
        self._place = 0
        """Tokens of the opening tag so far."""
        self._reasoning, self._decoder = parser.stream(True), StreamDecoder(tokenizer)
        self._open_mask = all_but(sorted(tokenizer.eos_ids), vocab)
        self._empty = np.zeros_like(self._open_mask)

    @staticmethod
    def _first(opened: bool | None) -> Literal["start", "reasoning", "answer"]:
        if opened is None:
            return "start"
        return "reasoning" if opened else "answer"

    def mask(self) -> UInt32[np.ndarray, "words"] | None:
        """Bit mask of the ids that may come next; ``None``: all."""
        if self._state == "reasoning":
            return self._open_mask
        found = self._empty if self._inner is None else self._inner.mask()
        if self._state == "answer" or found is None:
            return found
        token, found = self._tag[self._place], found.copy()
        found[token // WORD] |= np.uint32(1 << (token % WORD))
        return found

    def accept(self, token: int) -> None:
        """Advance by a token."""
        if self._state == "start":
            self._begin(token)
        elif self._state == "answer":
            assert self._inner is not None
            self._inner.accept(token)
        else:
            self._reasoning.push(self._decoder.push(token))
            if not self._reasoning.inside:
                self._state, self._inner = "answer", self._make()

    @property
    def finished(self) -> bool:
        """Whether nothing more can follow."""
        return self._state == "answer" and self._inner is not None and self._inner.finished

    def _begin(self, token: int) -> None:
        """Advance where both the opening tag and the answer are possible."""
        tagged = token == self._tag[self._place]
        if self._inner is not None:
            mask = self._inner.mask()
            if mask is None or mask[token // WORD] >> np.uint32(token % WORD) & 1:
                self._inner.accept(token)
            else:
                self._inner = None
        if not tagged:
            self._state = "answer"
            return
        self._place += 1
        if self._place == len(self._tag):
            self._state, self._inner = "reasoning", None
