"""Keeping one program at work while hosts come and go.

A *generation* is one call of the program in one world. It ends when the program returns, when it
leaves at a boundary because it was asked to (another host is ready, fewer are wanted, the
controller is to end), or when the world breaks: a host dies, says nothing, or its collective fails.
Then the others are called back, a world is made of those that are there, and the program is called
again: it resumes from its newest checkpoint. Each break spends from the run's failure budget. An
exception that is not the trace of a lost peer is the program's own and ends the run at once.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

from ziggurat.cluster import functions, messages
from ziggurat.cluster.budget import FailureBudget
from ziggurat.cluster.failures import HostError, failure_of
from ziggurat.cluster.hosts import LOOK_S, Host, Hosts
from ziggurat.cluster.ledger import Ledger
from ziggurat.cluster.record import ClusterRecord
from ziggurat.cluster.starts import Starts
from ziggurat.cluster.worlds import Worlds
from ziggurat.core.errors import ClusterError
from ziggurat.core.json_types import Json

_log = logging.getLogger(__name__)
BLAME_S = 1.0
"""How long an error waits for the news of a death that explains it."""
Usable = Callable[[int], str]
"""Function from a number of hosts to the reason that it cannot be used; empty when it can."""


@dataclasses.dataclass
class Wanted:
    """Number of hosts and other wishes of a user for a running program; they may change while it
    runs."""

    hosts: int
    spares: int
    stop: str = ""
    """Reason that the program is to leave and not to be called again."""


@dataclasses.dataclass(frozen=True)
class ProgramOutcome:
    """How a program ended."""

    values: list[Any]
    """Values returned on each host of its last world, in their order; empty where it was asked to
    leave while the world was broken."""
    stopped: str
    """Reason that it was asked to leave; empty when it continued to its end."""
    generations: int
    recoveries: int
    """How often a world broke."""


@dataclasses.dataclass
class _Generation:
    """One call of the program."""

    calls: dict[int, Host]
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    left: bool = False
    failure: tuple[Host, messages.Raised] | None = None
    failed_at: float = 0.0
    first_step: int | None = None
    moved_at: float = dataclasses.field(default_factory=time.monotonic)
    steps: dict[str, int] = dataclasses.field(default_factory=dict)
    boundary: str = ""
    """``holding`` or ``leaving`` once the controller asks for a boundary."""
    held: dict[str, int] = dataclasses.field(default_factory=dict)


class _Broken(Exception):
    """The world broke."""


class _Stopped(Exception):
    """Somebody asked to end while there was no world."""


class Supervision:
    """Runs one program to its end, over as many worlds as it takes.

    Args:
        hosts: all hosts.
        worlds: makes worlds of them.
        wanted: how many.
        usable: which numbers of hosts the program can use.
        ledger: account of the time.
        record: where events are noted.
        step_deadline_s: time without a step after which hosts that lag are killed, but for those
            that compile.
        compile_s: time that a host may compile.
        budget: failures that the run may have.
        starts: takes note of hosts that are ready or lost.
        restart: starts hosts that are missing, and ends those that are too many.
    """

    def __init__(
        self,
        hosts: Hosts,
        worlds: Worlds,
        wanted: Wanted,
        usable: Usable,
        ledger: Ledger,
        record: ClusterRecord,
        step_deadline_s: float,
        compile_s: float,
        budget: FailureBudget,
        starts: Starts,
        restart: Callable[[], None],
    ):
        self._hosts, self._worlds, self._wanted, self._usable = hosts, worlds, wanted, usable
        self._ledger, self._record, self._restart = ledger, record, restart
        self._step_deadline_s, self._compile_s = step_deadline_s, compile_s
        self._budget, self._starts = budget, starts
        self.step = self._reached = 0
        self._recoveries = 0
        self._raised: tuple[Host, messages.Raised] | None = None
        self._lost_at: float | None = None
        self._formed = False

    def run(self, payload: bytes) -> ProgramOutcome:
        """Call the program until it returns on all hosts, or until a user asks it to leave for
        good.

        Raises:
            HostError: it raised on a host, for a reason of its own.
            ClusterError: no hosts are left, or the failure budget is spent; what a host raised
                last is its cause.
        """
        while True:
            try:
                members = self._assemble()
            except _Stopped:
                stopped = self._wanted.stop
                return ProgramOutcome([], stopped, self._worlds.generation, self._recoveries)
            generation = _Generation(self._call(members, payload))
            try:
                self._follow(generation)
            except _Broken as broken:
                self._after_break(str(broken), generation)
                continue
            except HostError as error:
                self._ledger.ended("failed")
                self._worlds.collapse(str(error), generation.calls)
                raise
            self._ledger.ended("finish")
            if generation.left and not self._wanted.stop:
                continue
            values = [generation.values.get(host.name) for host in members]
            stopped = self._wanted.stop if generation.left else ""
            return ProgramOutcome(values, stopped, self._worlds.generation, self._recoveries)

    def best(self, available: int) -> int:
        """Largest number of hosts that is ready and that the program can use; 0 if there is
        none."""
        most = min(available, self._wanted.hosts)
        return next((count for count in range(most, 0, -1) if not self._usable(count)), 0)

    def _assemble(self) -> list[Host]:
        """A world of as many hosts as can be used.

        Raises:
            _Stopped: asked to end; no new world is made for that.
        """
        while True:
            if self._wanted.stop and self._budget.total:
                raise _Stopped
            self._restart()
            ready = self._hosts.ready()
            ready.sort(key=lambda host: host.index is None)  # those that were in the world first
            count = self.best(len(ready))
            if count:
                before = self._worlds.generation
                if self._worlds.form(ready[:count]):
                    self._ledger.charge("reform" if self._formed else "init")
                    self._formed = True
                    if self._worlds.generation > before:
                        self._say_formed()
                        self._restart()
                    return self._worlds.members
                self._ledger.charge("reform")
                self._spend("a host was lost while a world was made")
            elif self._hosts.starting():
                self._take_events(LOOK_S)
            else:
                raise ClusterError(
                    "cluster",
                    found=f"{len(ready)} hosts left",
                    expected="a number that the program can use",
                    fix="see above how the others were lost",
                )

    def _call(self, members: list[Host], payload: bytes) -> dict[int, Host]:
        calls = {}
        for host in members:
            number = self._hosts.next_number()
            calls[number] = host
            host.send(messages.Call(number, payload, in_world=True))
        return calls

    def _follow(self, generation: _Generation) -> None:
        """Until every host has answered.

        Raises:
            _Broken: the world broke.
            HostError: the program raised for a reason of its own.
        """
        while generation.calls or generation.failure:
            for host, message in self._hosts.wait(LOOK_S):
                self._take(generation, host, message)
                if not generation.calls and not generation.failure:
                    return
            if generation.failure and time.monotonic() - generation.failed_at > BLAME_S:
                host, raised = generation.failure
                if not raised.peers:
                    raise failure_of(host, raised)
                raise _Broken(f"{host.name}: {raised.line}")
            self._consider_boundary(generation)
            self._look_for_hangs(generation)

    def _take(self, generation: _Generation, host: Host | None, message: Any) -> None:
        if isinstance(message, messages.Returned) and message.number in generation.calls:
            name = generation.calls.pop(message.number).name
            generation.values[name] = functions.load(message.payload)
            generation.left |= message.left
            self._release_if_done(generation, message.left)
        elif isinstance(message, messages.Raised) and message.number in generation.calls:
            failed = generation.calls.pop(message.number)
            self._note_raised(failed, message)
            if generation.failure is None:
                generation.failure, generation.failed_at = (failed, message), time.monotonic()
            elif generation.failure[1].peers and not message.peers:
                generation.failure = failed, message  # what the others' errors come from
        elif isinstance(message, messages.PassedBoundary) and host is not None:
            generation.held[host.name] = message.step
            self._name_boundary(generation)
        elif isinstance(message, messages.ProgressReport) and host is not None:
            if message.generation == self._worlds.generation:
                self._report(generation, host, message)
        else:
            self.other(host, message)
            if isinstance(message, messages.Ended) and host in self._worlds.members:
                assert host is not None
                raise _Broken(f"{host.name} {host.how}")

    def other(self, host: Host | None, message: Any) -> None:
        """Handle a message that does not belong to the program's calls."""
        if host is not None:
            self._starts.note(host, message, self._reached)
        if isinstance(message, messages.Ended) and host is not None:
            self._say("lost", f"{host.name} is lost: {host.how}", host=host.name, how=host.how)
        elif isinstance(message, messages.Hello) and host is not None:
            self._say("ready", f"{host.name} is ready", host=host.name, pid=host.pid)
        elif isinstance(message, messages.Notice) and host is not None:
            self._say("notice", f"{host.name} will be taken away", host=host.name)
        elif isinstance(message, messages.Caller):
            hosts = message.arguments["hosts"]
            self._say("resize", f"{hosts} hosts wanted", hosts=hosts)
            self._restart()

    def _report(self, generation: _Generation, host: Host, report: messages.ProgressReport) -> None:
        if generation.steps.get(host.name) != report.step:
            generation.steps[host.name] = report.step
            generation.moved_at = time.monotonic()
        if host.index != 0:
            return
        self._ledger.report(report.step, report.ledger_s)
        if generation.first_step is None:
            generation.first_step = report.step
            self._record.note("resumed", step=report.step, generation=report.generation)
        self.step = report.step
        self._reached = max(self._reached, report.step)
        if report.step > generation.first_step and self._lost_at is not None:
            seconds = time.monotonic() - self._lost_at
            self._lost_at = None
            text = f"step {report.step} is done {seconds:.2f} s after the loss"
            self._say("recovered", text, step=report.step, seconds=round(seconds, 3))

    def _after_break(self, why: str, generation: _Generation) -> None:
        self._ledger.ended("detect")
        self._recoveries += 1
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        self._say("broken", f"the world broke after step {self.step}: {why}", step=self.step)
        for host, raised in self._worlds.collapse(why, generation.calls):
            self._note_raised(host, raised)
        self._ledger.charge("reform")
        self._spend(why)

    def _note_raised(self, host: Host, raised: messages.Raised) -> None:
        """Remember what was raised last; a program's own error rather than the trace of a peer."""
        if self._raised is None or self._raised[1].peers or not raised.peers:
            self._raised = host, raised

    def _spend(self, why: str) -> None:
        """Count a failure.

        Raises:
            ClusterError: it is one too many.
        """
        if not self._budget.spend(self._reached):
            return
        self._ledger.ended("failed")
        cause = None if self._raised is None else failure_of(*self._raised)
        said = f"; raised last: {cause}" if cause is not None and str(cause) not in why else ""
        error = ClusterError(
            "cluster",
            found=f"{self._budget.describe()}, step {self._reached} reached; the last: {why}{said}",
            expected="hosts and a program that stay",
            fix="see above what the hosts printed; --max-failures and --failure-window-s set how "
            "much is borne",
        )
        if cause is not None:
            error.add_note(f"on {cause.host}:\n{cause.traceback}")
        raise error from cause

    def _consider_boundary(self, generation: _Generation) -> None:
        """Ask the program to leave at the next boundary, if there is a reason to."""
        members = self._worlds.members
        if generation.boundary or generation.failure or len(generation.calls) < len(members):
            return
        here = len(members)
        moved = generation.first_step is not None and self.step > generation.first_step
        leaving = any(host.state == "leaving" for host in members)
        best = self.best(len(self._hosts.ready()))
        if self._wanted.stop or leaving or best < here or (best > here and moved):
            generation.boundary = "holding"
            for host in members:
                host.send(messages.Hold())

    def _name_boundary(self, generation: _Generation) -> None:
        """All have said where they are: leave at the first boundary that nobody has passed."""
        members = self._worlds.members
        if generation.boundary == "holding" and len(generation.held) == len(members):
            generation.boundary = "leaving"
            at = 1 + max(generation.held.values())
            for host in members:
                host.send(messages.Go(at))

    def _release_if_done(self, generation: _Generation, left: bool) -> None:
        """A program that came to its end first needs no boundary."""
        if generation.boundary == "holding" and not left:
            generation.boundary = "leaving"
            for host in self._worlds.members:
                host.send(messages.Go(None))

    def _look_for_hangs(self, generation: _Generation) -> None:
        now = time.monotonic()
        compiled = max((host.compiled_at for host in generation.calls.values()), default=0.0)
        if compiled > generation.moved_at and now - generation.moved_at < self._compile_s:
            quiet_s = now - compiled  # nobody hangs while one compiles
        else:
            quiet_s = now - generation.moved_at
        if quiet_s < self._step_deadline_s or not generation.calls:
            return
        members = list(generation.calls.values())
        for host in members:
            host.send(messages.Dump())  # where it hangs goes to its output
        self._take_events(1.0)
        behind = min(host.step for host in members)  # all of them, if nobody lags
        how = f"no step for {quiet_s:.0f} s"
        for host in [host for host in members if host.step == behind and host.state != "lost"]:
            self._hosts.kill(host, how)
            self.other(host, messages.Ended(how))
        raise _Broken(how)

    def _take_events(self, seconds: float) -> None:
        for host, message in self._hosts.wait(seconds):
            if not isinstance(
                message, (messages.ProgressReport, messages.Returned, messages.Raised)
            ):
                self.other(host, message)

    def _say_formed(self) -> None:
        names = [host.name for host in self._worlds.members]
        text = f"world {self._worlds.generation}: {', '.join(names)}"
        self._say("formed", text, hosts=names, generation=self._worlds.generation)

    def _say(self, event: str, text: str, **facts: Json) -> None:
        _log.info("%s", text)
        self._record.note(event, **facts)
