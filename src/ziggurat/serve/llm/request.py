"""A request inside the engine: the caller's handle, its timeline, and its sequences."""

import array
import dataclasses
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from ziggurat.core.errors import ZigguratError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.admission import QueuedRequest
from ziggurat.serve.llm.constraint import Constraint
from ziggurat.serve.llm.history import all_but, keeps_history
from ziggurat.serve.llm.output_text import FinishReason, OutputText, TokenEvent
from ziggurat.serve.llm.prompt_images import PromptImages
from ziggurat.serve.llm.prompt_logprobs import PromptLogprobs
from ziggurat.serve.llm.sampling import SamplingParams, SamplingRow
from ziggurat.serve.llm.sequence import Sequence
from ziggurat.serve.llm.token_rules import TokenRules

Listener = Callable[[TokenEvent | Exception | None], None]


@dataclasses.dataclass
class Timeline:
    """Times (``time.monotonic``) and token counts of a request."""

    submitted: float
    prompt_tokens: int
    max_tokens: int
    n: int
    started: float | None = None
    """Left the queue."""
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    generated_tokens: int = 0
    """Tokens of all completions, end ids included."""
    cached_tokens: int = 0
    """Tokens of the prompt that came from the prefix cache."""
    finish_reasons: list[FinishReason] = dataclasses.field(default_factory=list)
    """One for each completion that has ended."""


@runtime_checkable
class Monitor(Protocol):
    """Receiver of the engine's measurements, called on the engine's thread."""

    def token(self, seconds_since_last: float | None) -> None:
        """A token was generated; ``None`` for a completion's first."""
        ...

    def step(self, tokens: int) -> None:
        """A step processed ``tokens`` tokens, prompt and generated ones together."""
        ...

    def ended(self, timeline: Timeline) -> None:
        """A request left the engine."""
        ...


class Request:
    """A submitted request: iterate over its events, or cancel it.

    Without ``listener``, iterate over it: the events end when all completions have ended, and an
    error of the engine is raised. With ``listener``, the engine's thread calls it with every event,
    then with an exception or ``None``. Events of several completions are interleaved.
    """

    def __init__(
        self,
        prompt: Iterable[int],
        params: SamplingParams,
        max_tokens: int,
        listener: Listener | None,
        salt: bytes = b"",
        images: PromptImages | None = None,
    ):
        self.images = images
        self.prompt = array.array("i", prompt)
        self.params, self.max_tokens, self.salt = params, max_tokens, salt
        self.timeline = Timeline(time.monotonic(), len(self.prompt), max_tokens, params.n)
        self.queued_in: QueuedRequest | None = None
        """The HTTP request it is queued with; ``None`` once it runs."""
        self.seqs: list[RequestSequence] = []
        """Sequences that have not ended."""
        self.forked = params.n == 1
        """Whether the other sequences have been queued beside the first."""
        self.prompt_logprobs = PromptLogprobs.empty()
        """Log-probabilities of the prompt, as far as it is computed, if it asks for them."""
        self.rules: TokenRules | None = None
        """Tokens that may come, once it is taken in; ``None``: all."""
        self.error: Exception | None = None
        """Error that concerns this request alone."""
        self._events: queue.SimpleQueue[TokenEvent | Exception | None] | None = None
        if listener is None:
            self._events = queue.SimpleQueue()
            listener = self._events.put
        self.deliver: Listener = listener
        self.cancelled = False
        """Whether it is to end; set from any thread."""

    def first_sequence(
        self, tokenizer: HuggingFaceTokenizer, vocab: int, order: int, seed: int
    ) -> "RequestSequence":
        """Create the sequence that prefills the prompt; ``seed`` is for requests without one."""
        assert not self.seqs
        self.rules = TokenRules.of(self.params, tokenizer, vocab)
        seq = RequestSequence(
            order=(order, 0),
            tokens=list(self.prompt),
            client="" if self.queued_in is None else self.queued_in.client,
            salt=self.salt,
            images=self.images,
            reads_prefixes=self.params.prompt_logprobs is None,
            request=self,
            number=0,
            sampling=SamplingRow.of(self.params, 0, seed),
            output=OutputText(tokenizer, self.params, self.max_tokens, 0),
            vocab=vocab,
            seed=seed,
        )
        self.seqs.append(seq)
        return seq

    def other_sequences(self, tokenizer: HuggingFaceTokenizer) -> "list[RequestSequence]":
        """Create the sequences of the other completions, once the first has prefilled the prompt.

        Before that they would take memory for nothing.
        """
        first, self.forked = self.seqs[0], True
        made = [
            dataclasses.replace(
                first,
                order=(first.order[0], number),
                tokens=list(self.prompt),
                computed=0,
                blocks=[],
                block_table=None,
                slot=None,
                admission=None,
                digests=[],
                registered=0,
                number=number,
                sampling=SamplingRow.of(self.params, number, first.seed),
                output=OutputText(tokenizer, self.params, self.max_tokens, number),
                since=None,
            )
            for number in range(1, self.params.n)
        ]
        self.seqs += made
        return made

    def cancel(self) -> None:
        """Cancel the request; the next step runs without it."""
        self.cancelled = True

    def __iter__(self) -> Iterator[TokenEvent]:
        assert self._events is not None, "its events go to a listener"
        try:
            while (event := self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.cancel()


@dataclasses.dataclass(eq=False, kw_only=True)
class RequestSequence(Sequence):
    """One of a request's ``n`` sequences, with its sampling parameters, output and constraint."""

    request: Request
    number: int
    sampling: SamplingRow
    """Sampling parameters, as the device reads them."""
    output: OutputText
    """Output tokens and text so far."""
    vocab: int
    """Vocabulary size."""
    seed: int
    """Seed that is used if the request has none."""
    since: float | None = None
    """Time of its last token."""
    _ends: np.ndarray | None = dataclasses.field(default=None, init=False)
    _constraint: Constraint | None = dataclasses.field(default=None, init=False)

    @property
    def keeps_history(self) -> bool:
        """Whether its bias or its penalties need a row on the device."""
        return keeps_history(self.request.params)

    @property
    def shaped(self) -> bool:
        """Whether bias, penalties or a mask change the logits before its next token is sampled."""
        few = len(self.output.tokens) < self.request.params.min_tokens
        masked = self.request.rules is not None or self.constraint is not None
        return few or masked or self.keeps_history

    @property
    def constraint(self) -> Constraint | None:
        """Constraint on its text; created at first use, since it takes memory."""
        make = self.request.params.constraint
        if self._constraint is None and make is not None and self.request.error is None:
            try:
                self._constraint = make()
            except Exception as error:
                self._fail(error)
        return self._constraint

    def unscored(self, count: int) -> list[int]:
        """Tokens whose log-probabilities the next ``count`` computed tokens tell and the request
        still wants: each the one behind, up to the prompt's end."""
        request, start = self.request, self.computed
        if request.params.prompt_logprobs is None or self.number != 0:
            return []
        wanted = request.prompt[start + 1 : start + count + 1]
        known = len(request.prompt_logprobs.chosen) - start
        return [] if known >= len(wanted) else wanted.tolist()

    def allowed(self) -> np.ndarray | None:
        """Bit mask of the ids that may come next; ``None``: all."""
        mask = _both(self._grammar(), self._ruled())
        if len(self.output.tokens) >= self.request.params.min_tokens:
            return mask
        if self._ends is None:
            self._ends = all_but(sorted(self.output.ends), self.vocab)
        return _both(mask, self._ends)  # a grammar that can only end does end

    def accept(self, token: int) -> bool:
        """Advance the constraint by a token; true if the output is complete with it."""
        if self.constraint is None or token in self.output.ends:
            return False
        try:
            self.constraint.accept(token)
            return self.constraint.finished
        except Exception as error:
            self._fail(error)
            return False

    def _ruled(self) -> np.ndarray | None:
        rules = self.request.rules
        return None if rules is None else rules.mask(self.output.tokens)

    def _grammar(self) -> np.ndarray | None:
        try:
            return None if self.constraint is None else self.constraint.mask()
        except Exception as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        """End this request alone after an error of foreign code."""
        if not isinstance(error, ZigguratError):
            error = RequestError("constraint", found=repr(error), expected="one that can continue")
        self.request.error = error


def _both(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Ids that both masks allow; where there is none, those of the first."""
    if first is None or second is None:
        return second if first is None else first
    both = first & second
    return both if both.any() else first
