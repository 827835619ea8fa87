"""Output of one sequence: incremental detokenisation, stop strings and the finish reason."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

from ziggurat.data import HuggingFaceTokenizer, StreamDecoder
from ziggurat.formats.tokenizer_document import BYTE_CHARACTERS
from ziggurat.serve.llm.prompt_logprobs import PromptLogprobs
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.llm.stop import StopMatcher

FinishReason = Literal["stop", "length", "cancelled"]

_BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability under the model, before temperature and truncation."""

    token: int
    text: str
    raw: bytes
    """The token's own bytes; those of several tokens may make one character."""
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    """The most likely tokens at this place, most likely first."""


@dataclasses.dataclass(frozen=True)
class TokenEvent:
    """Token of a sequence, with the text that it completes."""

    token: int
    text: str
    """Text that may be shown now; empty while it is held back."""
    choice: int = 0
    """Index among the request's ``n`` sequences."""
    finish_reason: FinishReason | None = None
    """Set on a sequence's last event: ``stop`` (end id or stop text) or ``length``."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One entry for each token whose text begins in this event's text, if asked for."""
    score: float | None = None
    """Log-probability with which the token was drawn, if the engine reports ``scores``."""
    prompt_logprobs: PromptLogprobs | None = None
    """Log-probabilities of the prompt's tokens but the first, on a sequence's first event."""
    stop_text: str | None = None
    """Stop text at which a sequence ended, on its last event."""


class OutputText:
    """Tokens and text of one sequence: detokenises incrementally and stops at stop strings.

    Args:
        tokenizer: turns ids into text.
        params: when to stop.
        max_tokens: most tokens.
        choice: index of the sequence in its request.
    """

    def __init__(
        self, tokenizer: HuggingFaceTokenizer, params: SamplingParams, max_tokens: int, choice: int
    ):
        self._tokenizer, self._max_tokens, self._choice = tokenizer, max_tokens, choice
        self.ends = set(params.stop_token_ids)
        """Ids that end it."""
        if not params.ignore_eos:
            self.ends |= set(tokenizer.eos_ids)
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._include = params.include_stop_str_in_output
        self._matcher = StopMatcher(params.stop, include=self._include)
        self._pending: list[tuple[int, TokenLogprob]] = []
        self._decoded = self._emitted = 0
        self.tokens: list[int] = []
        """All tokens, an end id included."""
        self.finish_reason: FinishReason | None = None

    def push(
        self,
        token: int,
        logprob: TokenLogprob | None = None,
        *,
        score: float | None = None,
        complete: bool = False,
    ) -> TokenEvent:
        """Add the next token; ``complete`` says that nothing may follow it."""
        assert self.finish_reason is None
        self.tokens.append(token)
        ended = token in self.ends
        if logprob is not None and not ended:
            self._pending.append((self._decoded, logprob))
        silent = ended and not self._include
        text = "" if silent else self._feed(self._decoder.push(token))
        if self._matcher.stopped:
            self.finish_reason = "stop"
        elif ended or complete or len(self.tokens) == self._max_tokens:
            text += self._feed(self._decoder.finish())
            ended = ended or complete or self._matcher.stopped
            text += "" if self._matcher.stopped else self._matcher.flush()
            self.finish_reason = "stop" if ended else "length"
        self._emitted += len(text)
        return TokenEvent(
            token,
            text,
            self._choice,
            self.finish_reason,
            self._due(),
            score,
            stop_text=self._matcher.found,
        )

    def _feed(self, text: str) -> str:
        self._decoded += len(text)
        return self._matcher.push(text)

    def _due(self) -> tuple[TokenLogprob, ...]:
        """Entries of the tokens whose text has begun to be emitted."""
        whole = self.finish_reason is not None and not self._matcher.stopped
        due = [entry for start, entry in self._pending if whole or start < self._emitted]
        self._pending = self._pending[len(due) :]
        return tuple(due)


def describe_token(
    tokenizer: HuggingFaceTokenizer,
    token: int,
    logprob: float,
    top: tuple[TokenLogprob, ...] = (),
) -> TokenLogprob:
    """A token's text and bytes beside its log-probability."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    piece = tokenizer.backend.id_to_token(token) or ""
    known = tokenizer.decodes_bytes and token not in tokenizer.special_ids
    if known and all(character in _BYTES for character in piece):
        raw = bytes(_BYTES[character] for character in piece)
    else:
        raw = text.encode()
    return TokenLogprob(token, text, raw, logprob, top)


def describe_prompt(
    tokenizer: HuggingFaceTokenizer, tokens: Sequence[int], found: PromptLogprobs
) -> list[TokenLogprob]:
    """Texts and bytes of a prompt's tokens beside their log-probabilities.

    Args:
        tokenizer: the model's.
        tokens: the prompt but its first token.
        found: their log-probabilities.
    """

    @functools.cache
    def known(token: int) -> TokenLogprob:
        return describe_token(tokenizer, token, 0.0)

    def one(token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return dataclasses.replace(known(token), logprob=logprob, top=top)

    rows = zip(tokens, found.chosen.tolist(), found.top.tolist(), found.ids.tolist())
    return [one(token, chosen, tuple(map(one, ids, top))) for token, chosen, top, ids in rows]
