"""World of processes, as a program on one of its hosts sees it.

A *boundary* is the moment between two steps. The controller can ask a program to leave at one, for
instance to let another host in: all processes then leave at the same step, without a collective for
it. Each says which boundary it passed last and stops at the next until it hears of the answer; the
controller names the first that nobody has passed. That costs one round trip when it is asked for,
and nothing otherwise.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

REPORT_EVERY_S = 0.1


@runtime_checkable
class Store(Protocol):
    """Interface of the store behind :meth:`World.keep` and :meth:`World.fetch`."""

    def keep(self, name: str, content: bytes) -> None: ...

    def fetch(self, name: str) -> bytes | None: ...


class World:
    """The processes that run a program together, as one of them sees it.

    Args:
        host: name of this host.
        generation: how many worlds there were, this one included.
        index: this process, from 0.
        count: all processes.
        tell: takes (step, seconds by phase) to the controller.
        store: what the controller keeps for all hosts.

    >>> world = World("host-0", 1, 0, 1, lambda step, ledger: None)
    >>> [world.after(step) for step in range(3)]
    [False, False, False]
    >>> world.hold()                # the controller asks; nobody has passed boundary 3
    2
    >>> world.go(leave_at=3)
    >>> world.after(3), world.left
    (True, True)
    """

    def __init__(
        self,
        host: str,
        generation: int,
        index: int,
        count: int,
        tell: Callable[[int, Mapping[str, float]], None],
        store: "Store | None" = None,
    ):
        self.host, self.generation, self.index, self.count = host, generation, index, count
        self.left = False
        """Whether :meth:`after` has told the program to leave."""
        self.step = -1
        """The newest boundary that was passed."""
        self._tell, self._store = tell, store
        self._told_at = self._reports = 0
        self._guard = threading.Lock()
        self._held = False
        self._leave_at: int | None = None

    def again(self) -> "World":
        """World of the same processes for another call of a program, without a request to leave."""
        return World(self.host, self.generation, self.index, self.count, self._tell, self._store)

    def after(self, step: int) -> bool:
        """Whether the program is to leave now, after ``step`` steps; every process asks between all
        steps."""
        with self._guard:
            self.step = step
            if self._leave_at is not None and step >= self._leave_at:
                self.left = True
            return self.left

    def report(self, step: int, ledger_s: Mapping[str, float], *, now: bool = False) -> None:
        """Report progress to the controller, at most ten times a second.

        Args:
            step: steps done.
            ledger_s: seconds by phase since the program began.
            now: in any case.
        """
        passed = time.monotonic()
        if now or self._reports < 2 or passed - self._told_at >= REPORT_EVERY_S:
            self._told_at, self._reports = passed, self._reports + 1
            self._tell(step, ledger_s)

    def keep(self, name: str, content: bytes) -> None:
        """Ask the controller to keep content for hosts of later worlds, such as a compiled program;
        it keeps the newest entries."""
        if self._store is not None:
            self._store.keep(name, content)

    def fetch(self, name: str) -> bytes | None:
        """Fetch content that a host of this or an earlier world kept, if the controller still has
        it."""
        return None if self._store is None else self._store.fetch(name)

    def hold(self) -> int:
        """Stop the program at its next boundary until :meth:`go`; for the thread that receives
        commands."""
        if not self._held:
            self._guard.acquire()
            self._held = True
        return self.step

    def go(self, leave_at: int | None) -> None:
        """Let the program continue, to leave at ``leave_at``; called by the thread that held it."""
        if leave_at is not None:
            self._leave_at = leave_at
        if self._held:
            self._held = False
            self._guard.release()
