"""One Python script that owns the hosts it runs on."""

import contextlib
import functools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ziggurat.cluster import functions, messages
from ziggurat.cluster.budget import MAX_FAILURES, WINDOW_S, FailureBudget
from ziggurat.cluster.engines import ENGINES
from ziggurat.cluster.failures import HostLostError, failure_of
from ziggurat.cluster.functions import Function
from ziggurat.cluster.hosts import LOOK_S, Host, Hosts
from ziggurat.cluster.ledger import Ledger
from ziggurat.cluster.record import ClusterRecord
from ziggurat.cluster.starts import Starts
from ziggurat.cluster.supervision import BLAME_S, ProgramOutcome, Supervision, Usable, Wanted
from ziggurat.cluster.worlds import Worlds
from ziggurat.core.errors import ClusterError
from ziggurat.core.json_types import JsonObject

_log = logging.getLogger(__name__)


def any_number(hosts: int) -> str:
    """Accept any number of hosts: the default of ``usable``."""
    return ""


class Cluster:
    """The controller: starts hosts, runs functions on them and replaces those that fail.

    The hosts (not the spares) form one world of ``jax.distributed``, whose coordination service
    lives here: ``jax.devices()`` on any of them shows the devices of all, and each of them may die.

    Args:
        engine: ``subprocess`` for processes of this machine, ``ray``, or another of
            :data:`ziggurat.cluster.engines.ENGINES`.
        hosts: processes that work together.
        spares: processes that are started, imported and warm, and take the place of lost ones.
        address: of a Ray cluster that runs already; by default one is started for this controller.
        bind: address of this machine on which hosts reach the controller.
        directory: where events, ledger and the way to reach this controller are written.
        preload: modules that hosts import before they are ready.
        env: environment variables of hosts, on top of this process's.
        restart: start lost hosts anew; they join at a boundary between steps.
        silence_s: time without a sign of life after which a host is killed and counts as lost.
        step_deadline_s: time without a step after which the hosts that lag are killed.
        compile_s: time that a host may compile, which nothing can interrupt; while it does it is
            neither silent nor late.
        max_failures: how often worlds may break, and how often one host may be lost, within
            ``failure_window_s`` seconds; one more ends the program. Failures that are older count
            until the program does a step that it had not done before. ``failure_window_s=inf``
            makes it a total.
        failure_window_s: see ``max_failures``.
        start_s: time a host may take to start.
        enter_s: time all hosts may take to enter a world.
        patience_s: time a host may take to come back from a world that broke; then it is killed.
        printed: takes (host, line) for what hosts print; by default it goes to standard error with
            the host's name before each line.

    Raises:
        ClusterError: hosts do not start, or a setting is wrong.
        EnvironmentError: Ray is not installed.
    """

    def __init__(
        self,
        engine: str = "subprocess",
        hosts: int = 1,
        spares: int = 0,
        *,
        address: str | None = None,
        bind: str = "127.0.0.1",
        directory: Path | None = None,
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        restart: bool = True,
        silence_s: float = 20.0,
        step_deadline_s: float = 900.0,
        start_s: float = 300.0,
        enter_s: float = 60.0,
        patience_s: float = 10.0,
        compile_s: float = 3600.0,
        max_failures: int = MAX_FAILURES,
        failure_window_s: float = WINDOW_S,
        printed: Callable[[str, str], None] | None = None,
    ):
        _check(hosts, spares, bind)
        self.wanted = Wanted(hosts, spares)
        self._bind, self._step_deadline_s = bind, step_deadline_s
        self._compile_s = compile_s
        self._budget = functools.partial(
            FailureBudget, most=max_failures, window_s=float(failure_window_s)
        )
        self._budget()  # refuses what is no budget
        self._usable: Usable = any_number
        self._supervision: Supervision | None = None
        self._trained = False
        self._record = ClusterRecord(directory)
        with contextlib.ExitStack() as undo:
            undo.callback(self._record.close)
            self.ledger = Ledger(self._record.ledger)
            self._hosts = Hosts(
                ENGINES[engine](address),
                bind=bind,
                preload=tuple(preload),
                env=env or {},
                printed=printed or print_line,
                silence_s=silence_s,
                start_s=start_s,
                asked=self._asked,
            )
            undo.pop_all()
        self._starts = Starts(self._hosts, restart=restart, budget=self._budget)
        self._worlds = Worlds(
            self._hosts,
            bind,
            enter_s=enter_s,
            patience_s=patience_s,
            compile_s=compile_s,
            other=self._other,
        )

    def __enter__(self) -> "Cluster":
        try:
            self._record.reachable(self._hosts.listener.address, self._hosts.secret)
            self._record.note("began", hosts=self.wanted.hosts, spares=self.wanted.spares)
            self._start_missing()
            first = {f"host-{number}" for number in range(self.wanted.hosts)}
            while not first <= set(self.names):  # a spare that starts sooner stays a spare
                for host, message in self._hosts.wait(LOOK_S):
                    self._other(host, message)
                    if isinstance(message, messages.Ended) and host is not None:
                        self._note_start(host)
                self._start_missing()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """Hosts that are ready, spares included."""
        return [host.name for host in self._hosts.ready()]

    def run(self, function: Function, *arguments: Any, hosts: Sequence[str] | None = None) -> list:
        """Call a function on every host of the world, or on chosen ones, at the same time.

        Args:
            function: importable on hosts, or of the main script; or its name, ``"module:name"``.
            arguments: what it is called with.
            hosts: names; default all but the spares. On some of them only, a function must not use
                devices of the others.

        Returns:
            What it returned on each, in order.

        Raises:
            HostError: it raised on a host; the text has the host's name, the exception a note with
                the traceback of there.
            HostLostError: a host died meanwhile.
        """
        payload = functions.pack(function, arguments)
        members = self._form()
        chosen = members if hosts is None else [self._named(name) for name in hosts]
        calls: dict[int, Host] = {}
        for host in chosen:
            number = self._hosts.next_number()
            calls[number] = host
            host.send(messages.Call(number, payload, in_world=False))
        values: dict[str, Any] = {}
        error: ClusterError | None = None
        deadline = float("inf")
        while calls and time.monotonic() < deadline:
            for host, message in self._hosts.wait(LOOK_S):
                if isinstance(message, messages.Returned) and message.number in calls:
                    values[calls.pop(message.number).name] = functions.load(message.payload)
                elif isinstance(message, messages.Raised) and message.number in calls:
                    failed = failure_of(calls.pop(message.number), message)
                    deadline = min(deadline, time.monotonic() + BLAME_S)
                    error = error or failed
                else:
                    self._other(host, message)
                    if isinstance(message, messages.Ended) and host in chosen:
                        assert host is not None
                        error = HostLostError(host.name, host.how, host.lines)
                        calls = {n: one for n, one in calls.items() if one is not host}
                        deadline = min(deadline, time.monotonic() + BLAME_S)
                if not calls:
                    break
        if error is not None:
            if calls or isinstance(error, HostLostError):
                self._worlds.collapse(str(error), calls)
            raise error
        return [values[host.name] for host in chosen]

    def train(
        self, program: Function, *arguments: Any, usable: Usable = any_number
    ) -> ProgramOutcome:
        """Run a program that resumes from its checkpoints, however often hosts are lost or added.

        The program is called as ``program(world, *arguments)`` on every host of a world, see
        :class:`ziggurat.cluster.World`. It asks ``world.after(step)`` between steps, and leaves
        (having saved) when that is true. When a host is lost it is called again, in a new world of
        those that are there. SIGTERM or Ctrl-C make it leave at the next boundary; a second Ctrl-C
        ends at once.

        Args:
            program: function or its name, ``"module:name"``.
            arguments: what it is called with after the world.
            usable: says why a number of hosts cannot be used, such as that the batch does not
                divide; empty when it can.

        Raises:
            HostError: the program raised for a reason of its own.
            ClusterError: the wanted number of hosts cannot be used, no hosts are left, or worlds
                break more often than ``max_failures`` says.
        """
        payload = functions.pack(program, arguments)
        check_usable(self.wanted.hosts, usable)
        self._usable, self.wanted.stop = usable, ""
        if self._trained:  # another program, another account
            self.ledger.close()
            self.ledger = Ledger(self._record.ledger)
        self._trained = True
        supervision = Supervision(
            self._hosts,
            self._worlds,
            self.wanted,
            usable,
            self.ledger,
            self._record,
            self._step_deadline_s,
            self._compile_s,
            self._budget(),
            self._starts,
            self._start_missing,
        )
        self._supervision = supervision
        self.ledger.charge("init")
        try:
            with self._listening():
                outcome = supervision.run(payload)
        finally:
            self._usable, self._supervision = any_number, None
        self._record.note("ended", stopped=outcome.stopped, step=supervision.step)
        return outcome

    def resize(self, hosts: int) -> None:
        """Set the number of hosts that is wanted from the next boundary on; any thread may call it.

        Raises:
            ClusterError: the program cannot use that many.
        """
        if hosts < 1:
            raise ClusterError("hosts", found=hosts, expected="a number >= 1")
        check_usable(hosts, self._usable)
        self.wanted.hosts = hosts
        self._hosts.events.put((None, messages.Caller("resize", {"hosts": hosts})))

    def status(self) -> JsonObject:
        """Current state of the cluster, as JSON values."""
        account = self.ledger.account()
        now = time.monotonic()
        members = self._worlds.members
        rows = [
            {
                "host": host.name,
                "state": "in the world" if host in members else host.state,
                "index": host.index,
                "pid": host.pid,
                "step": host.step if host in members else None,
                "heard_s": round(now - host.heard, 2) if host.heard else None,
            }
            for host in sorted(self._hosts.alive.values(), key=lambda host: host.name)
        ]
        return {
            "hosts": rows,
            "wanted": self.wanted.hosts,
            "spares": self.wanted.spares,
            "generation": self._worlds.generation,
            "step": 0 if self._supervision is None else self._supervision.step,
            "wall_s": account.wall_s,
            "seconds": dict(account.seconds),
        }

    def close(self) -> None:
        """End all hosts and release what the engine started."""
        self._hosts.close()
        self._worlds.close()
        self.ledger.close()
        self._record.close()

    def _form(self) -> list[Host]:
        """The world that there is, or a new one of the hosts that are ready.

        Raises:
            ClusterError: no hosts are left, or they are lost again and again while it is made.
        """
        budget = self._budget()
        if self._worlds.members and all(host.state == "ready" for host in self._worlds.members):
            return self._worlds.members
        while True:
            self._start_missing()
            ready = self._hosts.ready()
            ready.sort(key=lambda host: host.index is None)
            if len(ready) >= self.wanted.hosts:
                if self._worlds.form(ready[: self.wanted.hosts]):
                    return self._worlds.members
                if budget.spend(0):
                    raise ClusterError(
                        "cluster",
                        found=budget.describe() + " while a world was made",
                        expected="hosts that stay",
                        fix="see above what they printed",
                    )
                continue
            if not self._hosts.starting():
                raise ClusterError(
                    "cluster", found=f"{len(ready)} hosts", expected=f"{self.wanted.hosts}"
                )
            for host, message in self._hosts.wait(LOOK_S):
                self._other(host, message)

    def _start_missing(self) -> None:
        """Start hosts up to the wanted number, and end those that are too many."""
        wanted, first = self.wanted.hosts + self.wanted.spares, self._worlds.generation == 0
        self._starts.start_missing(self._worlds.members, wanted, first=first)

    def _other(self, host: Host | None, message: Any) -> None:
        """Handle a message that arrives during a call but does not belong to it."""
        if self._supervision is not None:
            self._supervision.other(host, message)
            return
        if host is not None:
            self._starts.note(host, message, 0)
        if isinstance(message, messages.Ended) and host is not None:
            _log.warning("%s is lost: %s", host.name, host.how)

    def _note_start(self, host: Host) -> None:
        """A host that ended before it was ready; before there was a world that is an error."""
        time.sleep(0.3)  # its last words are on their way
        raise ClusterError(
            f"{host.name} did not start",
            found=host.how + (f"; it printed last: {host.lines[-1][:300]}" if host.lines else ""),
            expected="a process that connects to the controller",
            fix="see above what it printed",
        )

    def _named(self, name: str) -> Host:
        host = self._hosts.alive.get(name)
        if host is None or host.state != "ready":
            raise ClusterError("host", found=name, expected=f"one of {', '.join(self.names)}")
        return host

    def _asked(self, caller: messages.Caller) -> Any:
        """Answer a person's command; in a thread of its own."""
        try:
            if caller.do == "status":
                return self.status()
            if caller.do == "resize":
                self.resize(int(caller.arguments["hosts"]))
                return self.status()
        except ClusterError as error:
            return error
        return ClusterError("command", found=caller.do, expected="status or resize")

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask the program to leave; a second SIGINT interrupts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def receive(number: int, _: object) -> None:
            if self.wanted.stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.wanted.stop = signal.Signals(number).name

        old = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _check(hosts: int, spares: int, bind: str) -> None:
    for name, value, least in (("hosts", hosts, 1), ("spares", spares, 0)):
        if value < least:
            raise ClusterError(name, found=value, expected=f"a number >= {least}")
    if bind in ("", "0.0.0.0", "::"):
        raise ClusterError(
            "bind", found=repr(bind), expected="one address by which hosts reach this machine"
        )


def check_usable(hosts: int, usable: Usable) -> None:
    """Refuse a number of hosts that a program cannot use.

    Raises:
        ClusterError: with the numbers below and above that it can.

    >>> check_usable(3, lambda n: "" if 8 % n == 0 else f"8 rows do not divide by {n}")
    Traceback (most recent call last):
    ziggurat.core.errors.ClusterError: 3 hosts: found 8 rows do not divide by 3; expected 2 or 4
    """
    why = usable(hosts)
    if why:
        below = next((n for n in range(hosts - 1, 0, -1) if not usable(n)), None)
        above = next((n for n in range(hosts + 1, 2 * hosts + 1) if not usable(n)), None)
        near = " or ".join(str(n) for n in (below, above) if n is not None)
        raise ClusterError(f"{hosts} hosts", found=why, expected=near or "another number")


def print_line(host: str, line: str) -> None:
    """Print a line of a host's output on standard error, after the host's name."""
    sys.stderr.write(f"{host} | {line}\n")
    sys.stderr.flush()
