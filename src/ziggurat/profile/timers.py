"""Where the time of a run goes: phases, step records, medians over a window, and a ledger.

JAX returns before a step has run. A phase therefore measures the host: time the device needs shows
up in the phase that waits for it (``jax.block_until_ready``, or reading a metric). If a loop waits
only every k steps, single step times say little; :meth:`StepTimer.mean_tokens_per_s` stays right.
"""

import collections
import contextlib
import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Iterator

UNACCOUNTED = "unaccounted"
"""Ledger line for wall time that no phase covered."""


@dataclasses.dataclass
class StepRecord:
    """Timing of one step: wall time, tokens, and the phases within it."""

    step: int
    tokens: int = 0
    """Tokens the step trained on, over the whole job; set it when known."""
    wall_s: float = 0.0
    """Wall time of the step, seconds; 0 until the step has ended."""
    phases_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds per phase within the step, each second counted in the innermost phase only."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of wall time."""
        return self.tokens / self.wall_s if self.wall_s > 0 else 0.0


class StepTimer:
    """Times steps and phases on one thread.

    Phases nest; the inner one takes its time away from the outer one, so that no second is counted
    twice and the ledger sums to the wall time since the timer was made.

    Args:
        window: number of most recent steps that medians look at.
        clock: seconds from a monotonic clock.

    >>> ticks = iter(range(100))
    >>> timer = StepTimer(clock=lambda: float(next(ticks)))  # made at 0
    >>> with timer.step(0) as record:                        # begins at 1
    ...     with timer.phase("data"):                        # 2 .. 3
    ...         record.tokens = 8
    >>> record.wall_s, record.phases_s                       # ended at 4
    (3.0, {'data': 1.0})
    >>> timer.ledger()                                       # asked at 5
    {'data': 1.0, 'unaccounted': 4.0}
    """

    def __init__(self, *, window: int = 50, clock: Callable[[], float] = time.perf_counter):
        if window < 1:
            raise ValueError(f"window: found {window}, expected at least 1")
        self._clock = clock
        self._records: collections.deque[StepRecord] = collections.deque(maxlen=window)
        self._totals_s: dict[str, float] = {}
        self._open: list[str] = []
        self._record: StepRecord | None = None
        self._thread = threading.get_ident()
        self._began = self._mark = clock()

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """The steps of the window, oldest first."""
        return tuple(self._records)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the time of the block under ``name``."""
        assert threading.get_ident() == self._thread, "a StepTimer belongs to one thread"
        if name == UNACCOUNTED:
            raise ValueError(f"phase name {name!r} is taken by the ledger")
        self._charge()
        self._open.append(name)
        self._totals_s.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[StepRecord]:
        """Time one step; it enters the window when the block ends without an error."""
        assert self._record is None, "steps do not nest"
        self._charge()  # what came before belongs to no step
        record = self._record = StepRecord(step)
        began = self._mark
        try:
            yield record
            self._charge()
            record.wall_s = self._mark - began
            self._records.append(record)
        finally:
            self._record = None

    def median_step_s(self) -> float | None:
        """Median wall time of the window's steps, seconds; None before the first step."""
        return _median([record.wall_s for record in self._records])

    def median_phase_s(self, name: str) -> float | None:
        """Median time of a phase over the window's steps, seconds; a step without it counts 0."""
        return _median([record.phases_s.get(name, 0.0) for record in self._records])

    def median_tokens_per_s(self) -> float | None:
        """Median throughput over the window's steps; robust against a slow step now and then."""
        return _median([record.tokens_per_s for record in self._records])

    def mean_tokens_per_s(self) -> float | None:
        """All tokens of the window over all its time; right also when only some steps wait."""
        wall_s = sum(record.wall_s for record in self._records)
        return sum(record.tokens for record in self._records) / wall_s if wall_s > 0 else None

    def wall_s(self) -> float:
        """Seconds since the timer was made."""
        self._charge()
        return self._mark - self._began

    def ledger(self) -> dict[str, float]:
        """Seconds per phase since the timer was made, in order of first use, then
        ``unaccounted``. The values sum to the wall time, also while a phase is open."""
        wall_s = self.wall_s()
        rest = wall_s - sum(self._totals_s.values())
        return self._totals_s | {UNACCOUNTED: max(rest, 0.0)}

    def _charge(self) -> None:
        """Give the time since the last mark to the innermost open phase."""
        now = self._clock()
        if self._open:
            name, passed = self._open[-1], now - self._mark
            self._totals_s[name] += passed
            if self._record is not None:
                phases = self._record.phases_s
                phases[name] = phases.get(name, 0.0) + passed
        self._mark = now


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
