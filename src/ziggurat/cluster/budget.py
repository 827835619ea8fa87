"""How many failures a run may have: the bound of everything that a controller tries again."""

import dataclasses
import time
from collections.abc import Callable

from ziggurat.core.errors import ClusterError

MAX_FAILURES = 10
WINDOW_S = 3600.0


@dataclasses.dataclass(kw_only=True)
class FailureBudget:
    """Counts failures until there are too many.

    A failure is forgotten once it is older than the window *and* the run has done a step that it
    had not done before. So a fault that comes back at the same step ends the run however long each
    try takes and however many steps are repeated, while a run of months survives the losses that
    hardware has. With an infinite window the most is a total for the whole run.

    >>> budget = FailureBudget(most=2, window_s=60.0, clock=iter([0, 30, 100, 130, 131]).__next__)
    >>> [budget.spend(step=6) for _ in range(2)]  # at 0 and 30 seconds
    [False, False]
    >>> budget.spend(step=6)                      # at 100 s, but the run is where it was
    True
    >>> budget.spend(step=9)                      # at 130 s, three steps further
    False
    """

    most: int = MAX_FAILURES
    """Failures within the window that are borne; one more is too many."""
    window_s: float = WINDOW_S
    clock: Callable[[], float] = time.monotonic
    _failures: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    total: int = 0
    """Failures so far, forgotten ones too."""

    def __post_init__(self):
        for name, value, least in (
            ("max_failures", self.most, 0),
            ("failure_window_s", self.window_s, 0.0),
        ):
            if not value >= least:
                raise ClusterError(name, found=value, expected=f"a number >= {least}")

    def spend(self, step: int) -> bool:
        """Count a failure; whether that is one too many.

        Args:
            step: the newest step that the run has ever done.
        """
        now = self.clock()
        self.total += 1
        self._failures = [
            (when, reached)
            for when, reached in self._failures
            if now - when <= self.window_s or step <= reached
        ]
        self._failures.append((now, step))
        return len(self._failures) > self.most

    def describe(self) -> str:
        """The failures counted so far, in words."""
        within = f" within {self.window_s:g} s" if self.window_s != float("inf") else ""
        counted = len(self._failures)
        return f"{counted} failures{within} or without a new step (max_failures = {self.most})"
