"""A request inside the engine: its handle for the caller, its times, and its choices' lanes."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from ziggurat.core.errors import ZigguratError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm import sequence
from ziggurat.serve.llm.constraint import Constraint
from ziggurat.serve.llm.history import all_but, keeps_history
from ziggurat.serve.llm.lane import Lane
from ziggurat.serve.llm.sampling import KnobRow, Knobs, SamplingParams
from ziggurat.serve.llm.sequence import FinishReason, TokenEvent

Listener = Callable[[TokenEvent | Exception | None], None]


@dataclasses.dataclass
class Timeline:
    """When things happened to a request (``time.monotonic``) and how many tokens it had."""

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
    """Of all choices; end ids count."""
    finish_reasons: list[FinishReason] = dataclasses.field(default_factory=list)
    """One for each choice that came to its end."""


@runtime_checkable
class Monitor(Protocol):
    """Hears what the engine measures, on the engine's thread."""

    def token(self, seconds_since_last: float | None) -> None:
        """A token came; ``None`` for a choice's first."""
        ...

    def step(self, tokens: int) -> None:
        """A step was taken with so many tokens, read and generated ones together."""
        ...

    def ended(self, timeline: Timeline) -> None:
        """A request left the engine."""
        ...


class Generation:
    """A submitted request: iterate over its events, or cancel it.

    Without ``listener`` iterate over it: events end when all choices have, and an error of the
    engine is raised. With ``listener`` every event, then an exception or ``None``, is given to it
    on the engine's thread. Events of different choices come mixed.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        max_tokens: int,
        listener: Listener | None,
    ):
        self.prompt, self.params, self.max_tokens = list(prompt), params, max_tokens
        self.timeline = Timeline(time.monotonic(), len(self.prompt), max_tokens, params.n)
        self.constraints: list[Constraint] = []
        if params.constraint is not None:
            self.constraints = [params.constraint() for _ in range(params.n)]
        self.lanes: list[Choice] = []
        """Those of choices that have not ended."""
        self.forked = params.n == 1
        """Whether the other lanes have been queued beside the first."""
        self.error: Exception | None = None
        """What went wrong with this request alone."""
        self._events: queue.SimpleQueue[TokenEvent | Exception | None] = queue.SimpleQueue()
        self.deliver: Listener = listener or self._events.put
        self._cancelled = threading.Event()

    def make_lanes(
        self, tokenizer: HuggingFaceTokenizer, vocab: int, order: int, seed: int
    ) -> None:
        """Make a lane for each choice; ``seed`` serves where the request gives none."""
        for number in range(self.params.n):
            output = sequence.Sequence(tokenizer, self.params, self.max_tokens, number)
            lane = Choice(
                order=(order, number),
                tokens=list(self.prompt),
                generation=self,
                number=number,
                knobs=Knobs.row(self.params, number, seed),
                output=output,
                vocab=vocab,
            )
            self.lanes.append(lane)

    @property
    def queued(self) -> "list[Choice]":
        """Lanes that the scheduler knows: until the first has read the prompt, that one only."""
        return list(self.lanes) if self.forked else self.lanes[:1]

    def cancel(self) -> None:
        """Give the request up; the next step is without it."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def __iter__(self) -> Iterator[TokenEvent]:
        try:
            while (event := self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.cancel()


@dataclasses.dataclass(eq=False, kw_only=True)
class Choice(Lane):
    """The lane of one of a request's ``n`` generations."""

    generation: Generation
    number: int
    knobs: KnobRow
    """How it draws, as numbers for the device."""
    output: sequence.Sequence
    """Its text so far."""
    vocab: int
    """Ids there are."""
    since: float | None = None
    """When its last token came."""
    _ends: np.ndarray | None = None

    @property
    def keeps_history(self) -> bool:
        """Whether its bias or its penalties need a row on the device."""
        return keeps_history(self.generation.params)

    @property
    def shaped(self) -> bool:
        """Whether its next token is drawn from anything but the model's own logits."""
        few = len(self.output.tokens) < self.generation.params.min_tokens
        return few or self.keeps_history or self.constraint is not None

    @property
    def constraint(self) -> Constraint | None:
        """What its text must obey."""
        made = self.generation.constraints
        return made[self.number] if made else None

    def allowed(self) -> np.ndarray | None:
        """Mask of the ids that may come next; ``None``: all."""
        mask = self._grammar()
        if len(self.output.tokens) >= self.generation.params.min_tokens:
            return mask
        if self._ends is None:
            self._ends = all_but(sorted(self.output.ends), self.vocab)
        if mask is None:
            return self._ends
        both = mask & self._ends
        return both if both.any() else mask  # a grammar that can only end does end

    def accept(self, token: int) -> bool:
        """Tell the constraint of a token; says whether the output is complete with it."""
        if self.constraint is None or token in self.output.ends:
            return False
        try:
            self.constraint.accept(token)
            return self.constraint.finished
        except Exception as error:
            self._fail(error)
            return False

    def _grammar(self) -> np.ndarray | None:
        try:
            return None if self.constraint is None else self.constraint.mask()
        except Exception as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        """Foreign code failed: it ends its own request and must not end the others."""
        if not isinstance(error, ZigguratError):
            error = RequestError("constraint", found=repr(error), expected="one that can go on")
        self.generation.error = error
