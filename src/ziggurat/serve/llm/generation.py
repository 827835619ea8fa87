"""A request inside the engine: its handle for the caller, its times, and its choices' lanes."""

import array
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
from ziggurat.serve.llm.admission import Queued
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
        salt: bytes = b"",
    ):
        self.prompt = array.array("i", prompt)
        self.params, self.max_tokens, self.salt = params, max_tokens, salt
        self.timeline = Timeline(time.monotonic(), len(self.prompt), max_tokens, params.n)
        self.queued_in: Queued | None = None
        """The request it waits with, until it runs."""
        self.lanes: list[Choice] = []
        """Those of choices that have not ended."""
        self.forked = params.n == 1
        """Whether the other lanes have been queued beside the first."""
        self.error: Exception | None = None
        """What went wrong with this request alone."""
        self._events: queue.SimpleQueue[TokenEvent | Exception | None] = queue.SimpleQueue()
        self.deliver: Listener = listener or self._events.put
        self._cancelled = threading.Event()

    def first_lane(
        self, tokenizer: HuggingFaceTokenizer, vocab: int, order: int, seed: int
    ) -> "Choice":
        """Make the lane that reads the prompt; ``seed`` serves where the request gives none."""
        assert not self.lanes
        lane = Choice(
            order=(order, 0),
            tokens=list(self.prompt),
            client="" if self.queued_in is None else self.queued_in.client,
            salt=self.salt,
            generation=self,
            number=0,
            knobs=Knobs.row(self.params, 0, seed),
            output=sequence.Sequence(tokenizer, self.params, self.max_tokens, 0),
            vocab=vocab,
            seed=seed,
        )
        self.lanes.append(lane)
        return lane

    def other_lanes(self, tokenizer: HuggingFaceTokenizer) -> "list[Choice]":
        """Make the lanes of the other choices, once the first has read the prompt: before, they
        would take memory for nothing."""
        first, self.forked = self.lanes[0], True
        made = [
            dataclasses.replace(
                first,
                order=(first.order[0], number),
                tokens=list(self.prompt),
                cached=0,
                blocks=[],
                table=None,
                slot=None,
                stay=None,
                digests=[],
                registered=0,
                number=number,
                knobs=Knobs.row(self.params, number, first.seed),
                output=sequence.Sequence(tokenizer, self.params, self.max_tokens, number),
                since=None,
            )
            for number in range(1, self.params.n)
        ]
        self.lanes += made
        return made

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
    seed: int
    """Serves where the request gives none."""
    since: float | None = None
    """When its last token came."""
    _ends: np.ndarray | None = dataclasses.field(default=None, init=False)
    _constraint: Constraint | None = dataclasses.field(default=None, init=False)

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
        """What its text must obey; made when it is first asked for, since it takes memory."""
        make = self.generation.params.constraint
        if self._constraint is None and make is not None and self.generation.error is None:
            try:
                self._constraint = make()
            except Exception as error:
                self._fail(error)
        return self._constraint

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
