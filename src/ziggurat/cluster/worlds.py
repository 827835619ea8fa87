"""Forming one world after another out of the hosts that are there."""

import logging
import time
from collections.abc import Callable, Sequence

from ziggurat.cluster import messages
from ziggurat.cluster.hosts import LOOK_S, Host, Hosts
from ziggurat.mesh.world import Service

_log = logging.getLogger(__name__)
_DUMP_S = 0.3
Other = Callable[[Host | None, object], None]
"""Takes events that a wait was not for."""


class Worlds:
    """The current world and its coordination service, which runs in the controller's process.

    Args:
        hosts: all hosts.
        bind: address for the services.
        enter_s: time for all to enter a world.
        patience_s: time for a host to come back once its world is broken; then it is killed.
        compile_s: time for a host that compiles, which nothing can call back from that.
        other: takes events of no concern here.
    """

    def __init__(
        self,
        hosts: Hosts,
        bind: str,
        *,
        enter_s: float,
        patience_s: float,
        compile_s: float,
        other: Other,
    ):
        self._hosts, self._bind, self._other = hosts, bind, other
        self._enter_s, self._patience_s, self._compile_s = enter_s, patience_s, compile_s
        self.members: list[Host] = []
        """Hosts of the present world, by index; empty when there is none."""
        self.generation = 0
        self._service: Service | None = None
        self._inside: list[Host] = []
        """Whom the service knows: they must leave before it ends."""

    def form(self, chosen: Sequence[Host]) -> bool:
        """Make a world of these hosts; returns False if one of them did not enter it.

        Hosts that were in the world before keep their place where they can, so that each finds the
        snapshots that its keeper has.
        """
        if self.members and set(map(id, self.members)) == set(map(id, chosen)):
            return True
        placed = place(chosen)
        self.generation += 1
        self.members = []
        old, self._service = self._service, None
        if len(placed) > 1:
            self._service = Service(self._bind, len(placed))
        address = "" if self._service is None else self._service.address
        left_out = [host for host in self._inside if host not in placed and host.state != "lost"]
        for host in self._hosts.alive.values():
            host.index = None
        entering: dict[int, Host] = {}
        for host in left_out:  # each into a world of its own
            self._send(host, entering, "", 1, 0)
        for index, host in enumerate(placed):
            host.index, host.step = index, -1
            self._send(host, entering, address, len(placed), index)
        self._inside = placed
        # once one is gone, most of the others wait for it where nothing can call them back
        fine = self._all_answer(entering, self._enter_s, self._patience_s / 2)
        if old is not None:
            old.close()  # everybody has left it
        if fine:
            self.members = placed
        return fine

    def collapse(self, reason: str, calls: dict[int, Host]) -> list[tuple[Host, messages.Raised]]:
        """End a broken world: interrupt the call of every member, and kill those that do not
        return. A member that compiles is waited for.

        Args:
            reason: why.
            calls: those under way.

        Returns:
            What they raised meanwhile.
        """
        members, self.members = self.members, []
        for host in members:
            if host.state != "lost":
                host.send(messages.Interrupt(reason))
        waiting = {number: host for number, host in calls.items() if host.state != "lost"}
        raised: list[tuple[Host, messages.Raised]] = []
        self._all_answer(waiting, self._patience_s, self._patience_s, raised)
        return raised

    def close(self) -> None:
        """Stop the coordination service, after all hosts have ended."""
        if self._service is not None:
            self._service.close()

    def _send(
        self, host: Host, entering: dict[int, Host], address: str, count: int, index: int
    ) -> None:
        number = self._hosts.next_number()
        entering[number] = host
        host.send(
            messages.Enter(number, self.generation, address, count, index, within_s=self._enter_s)
        )

    def _all_answer(
        self,
        waiting: dict[int, Host],
        within_s: float,
        patience_s: float,
        raised: list[tuple[Host, messages.Raised]] | None = None,
    ) -> bool:
        """Wait for answers, for ``patience_s`` more once one failed or died; whoever gives none is
        killed, unless it compiles. False if one failed, died or was killed; ``raised`` takes what
        was raised."""
        began, fine = time.monotonic(), True
        deadline = began + within_s
        while waiting:
            for host, message in self._hosts.wait(LOOK_S):
                if isinstance(message, (messages.Returned, messages.Raised)):
                    answered = waiting.pop(message.number, None)
                    if answered is None:
                        continue
                    failed = isinstance(message, messages.Raised)
                    if isinstance(message, messages.Raised):
                        _log.debug("%s: %s: %s", answered.name, message.kind, message.line)
                        if raised is not None:
                            raised.append((answered, message))
                elif isinstance(message, messages.Ended):
                    gone = [number for number, one in waiting.items() if one is host]
                    for number in gone:
                        del waiting[number]
                    failed = bool(gone)
                    self._other(host, message)
                else:
                    failed = False
                    self._other(host, message)
                if failed and fine:
                    fine = False
                    deadline = min(deadline, time.monotonic() + patience_s)
                if not waiting:
                    break
            late = self._late(waiting, began, deadline, patience_s)
            if late:
                fine = False
                self._kill_late(list(late.values()), began)
                waiting = {n: host for n, host in waiting.items() if n not in late}
        return fine

    def _late(
        self, waiting: dict[int, Host], began: float, deadline: float, patience_s: float
    ) -> dict[int, Host]:
        """Hosts whose time is over; a host that compiles gets its patience anew from then on."""
        now, latest = time.monotonic(), began + self._compile_s

        def due(host: Host) -> float:
            compiled = host.compiled_at + patience_s if host.compiled_at > began else 0.0
            return max(deadline, min(compiled, latest))

        return {number: host for number, host in waiting.items() if now > due(host)}

    def _kill_late(self, late: list[Host], began: float) -> None:
        for host in late:
            host.send(messages.Dump())  # where it hangs goes to its output
        time.sleep(_DUMP_S)
        waited = time.monotonic() - began
        for host in late:
            self._hosts.kill(host, f"it did not answer for {waited:.1f} s")
            self._other(host, messages.Ended(host.how))


def place(chosen: Sequence[Host]) -> list[Host]:
    """Order hosts by their index in the next world.

    >>> a, b, c = Host("a", "1", index=0), Host("b", "2", index=1), Host("c", "3")
    >>> [host.name for host in place([b, c])]  # c takes the place of a, which is gone
    ['c', 'b']
    >>> [host.name for host in place([b])]
    ['b']
    """
    places: list[Host | None] = [None] * len(chosen)
    rest = []
    for host in chosen:
        if host.index is not None and host.index < len(places) and places[host.index] is None:
            places[host.index] = host
        else:
            rest.append(host)
    return [host or rest.pop(0) for host in places]
