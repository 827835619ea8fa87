"""The hosts of a cluster as its controller knows them, and the one queue of all that happens.

Threads read channels and wait for processes; each puts what it learns into the queue, and the
thread that drives the cluster takes it out. Only that thread changes a host's state.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ziggurat.cluster import messages
from ziggurat.cluster.channel import Channel, ChannelClosed, Listener
from ziggurat.cluster.engine import ClusterEngine, Handle, Orders
from ziggurat.cluster.worker import installed_versions, this_machine
from ziggurat.core.errors import ClusterError

_log = logging.getLogger(__name__)
PING_S = 1.0
LOOK_S = 0.25
_SHOWN_LINES = 40
_EXPLAINED_S = 0.5
"""Seconds that a closed connection waits for its host's exit code."""
_MOST_KEPT = 16


@dataclasses.dataclass(eq=False)
class Host:
    """One host process, alive or ended."""

    name: str
    life: str
    handle: Handle | None = None
    channel: Channel | None = None
    state: str = "starting"
    """``starting``, ``ready``, ``leaving`` (will be taken away) or ``lost``."""
    how: str = ""
    """How it was lost."""
    pid: int = 0
    machine: str = ""
    started: float = dataclasses.field(default_factory=time.monotonic)
    heard: float = 0.0
    """When it was heard of last."""
    index: int | None = None
    """Index in the world, while the host is in one."""
    step: int = -1
    compiled_at: float = 0.0
    """When it said last that it was compiling."""
    lines: list[str] = dataclasses.field(default_factory=list)
    """The last lines that it printed."""
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set once its engine has told of its end."""

    def send(self, message: Any) -> None:
        """Send a message; if the host is gone nothing happens here, its loss is reported as an
        event."""
        if self.channel is not None:
            with contextlib.suppress(ChannelClosed):
                self.channel.send(message)


Event = tuple[Host | None, Any]
"""Whom it comes from (None: a person or a signal), and one of :mod:`ziggurat.cluster.messages`."""


class Hosts:
    """All host processes of a controller: starts, watches and ends them.

    Args:
        engine: places processes.
        bind: address of this machine to listen on.
        preload: modules that hosts import before they are ready.
        env: environment of hosts, on top of the controller's.
        printed: takes (host, line) for each line a host prints.
        silence_s: time without a sign of life after which a host is killed.
        start_s: time a host may take to start.
        asked: takes a person's command and returns the answer.
    """

    def __init__(
        self,
        engine: ClusterEngine,
        *,
        bind: str,
        preload: tuple[str, ...],
        env: Mapping[str, str],
        printed: Callable[[str, str], None],
        silence_s: float,
        start_s: float,
        asked: Callable[[messages.Caller], Any],
    ):
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.secret = secrets.token_bytes(32)
        self.alive: dict[str, Host] = {}
        """By name, those that are not lost."""
        self._engine, self._preload, self._env = engine, preload, env
        self._printed, self._asked = printed, asked
        self._silence_s, self._start_s = silence_s, start_s
        self._by_life: dict[str, Host] = {}
        self._versions = installed_versions()
        self._here = this_machine()
        self.closed = threading.Event()
        self._numbers = itertools.count(1)
        self._looked = 0.0
        self._kept: dict[str, bytes] = {}
        self.listener = Listener(bind, self.secret, self._serve)
        threading.Thread(target=self._ping, name="ping", daemon=True).start()

    def start(self, name: str) -> Host:
        """Start a host; some seconds later it becomes ready."""
        host = Host(name, secrets.token_hex(8))
        self._by_life[host.life] = self.alive[name] = host
        orders = Orders(
            name=name,
            life=host.life,
            address=self.listener.address,
            secret=self.secret,
            preload=self._preload,
            env=self._env,
            printed=lambda line: self._print(host, line),
            ended=lambda how: self._ended(host, how),
        )
        host.handle = self._engine.start(orders)
        return host

    def ready(self) -> list[Host]:
        """Hosts that can be used, by name."""
        found = [host for host in self.alive.values() if host.state == "ready"]
        return sorted(found, key=lambda host: (len(host.name), host.name))

    def starting(self) -> list[Host]:
        """Hosts that were started and are not ready yet."""
        return [host for host in self.alive.values() if host.state == "starting"]

    def next_number(self) -> int:
        """Return an unused number for the next request."""
        return next(self._numbers)

    def kill(self, host: Host, how: str) -> None:
        """Kill a host by force; from now on it counts as lost."""
        self._lose(host, how)
        if host.handle is not None:
            host.handle.kill()
        if host.pid and host.machine == self._here:  # an engine may need its help to end it
            with contextlib.suppress(OSError):
                os.kill(host.pid, signal.SIGKILL)

    def end(self, host: Host) -> None:
        """Ask a host to end by itself."""
        self._lose(host, "ended")
        host.send(messages.End())

    def wait(self, seconds: float) -> Iterator[Event]:
        """Collect events until none came for a moment, or until ``seconds`` have passed.

        The caller handles those that concern it. A host that is silent for too long becomes an
        event.
        """
        deadline = time.monotonic() + seconds
        self._look()
        while True:
            left = max(min(deadline - time.monotonic(), LOOK_S), 0.0)
            try:
                host, message = self.events.get(timeout=left) if left else self.events.get_nowait()
            except queue.Empty:
                self._look()
                if time.monotonic() >= deadline:
                    return
                continue
            if host is None or not self._absorb(host, message):
                yield host, message

    def close(self) -> None:
        """End all hosts and accept no more."""
        self.closed.set()
        self.listener.close()
        gone = list(self.alive.values())
        for host in gone:
            host.send(messages.End())
        deadline = time.monotonic() + 5.0
        waiting = {host.life for host in gone if host.state != "starting"}
        while waiting and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                host, message = self.events.get(timeout=left)
                if host is not None and isinstance(message, messages.Ended):
                    waiting.discard(host.life)
        for host in gone:
            self.kill(host, "ended")
        self._engine.close()

    def _absorb(self, host: Host, message: Any) -> bool:
        """Deal with what concerns nobody else; whether that was all."""
        if isinstance(message, messages.Ended):
            if host.state == "lost":
                return True  # known already
            self.kill(host, message.how)
            return False
        if host.state == "lost":
            return True
        if isinstance(message, messages.Beat):
            host.step = message.step
            if message.compiling:
                host.compiled_at = time.monotonic()
            return True
        if isinstance(message, messages.Hello):
            self._check_versions(message)
            host.state = "ready"
        elif isinstance(message, messages.Notice):
            host.state = "leaving"
        return False

    def _lose(self, host: Host, how: str) -> None:
        host.how, host.state = how, "lost"
        if self.alive.get(host.name) is host:
            del self.alive[host.name]

    def _look(self) -> None:
        """Find those that say nothing."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        for host in list(self.alive.values()):
            if host.state == "starting":
                silent, most = now - host.started, self._start_s
            else:
                silent, most = now - host.heard, self._silence_s
            if silent > most:
                self.events.put((host, messages.Ended(f"no sign of life for {most:g} s")))

    def _ping(self) -> None:
        """Let hosts know that the controller lives, whatever its main thread is doing."""
        while not self.closed.wait(PING_S):
            for host in list(self.alive.values()):
                host.send(messages.Ping())

    def _serve(self, channel: Channel) -> None:
        """Read one connection to its end; in a thread of its own."""
        first = channel.receive()
        if isinstance(first, messages.Caller):
            channel.send(self._asked(first))
            return
        host = self._by_life.get(first.life) if isinstance(first, messages.Hello) else None
        if host is None or host.state == "lost" or host.channel is not None:
            return
        host.channel, host.pid, host.machine = channel, first.pid, first.machine
        host.heard = time.monotonic()
        self.events.put((host, first))
        try:
            while True:
                message = channel.receive()
                host.heard = time.monotonic()
                if isinstance(message, messages.Output):
                    self._print(host, message.line)
                elif isinstance(message, messages.Keep):
                    self._keep(message)
                elif isinstance(message, messages.Fetch):
                    host.send(messages.Kept(message.name, self._kept.get(message.name)))
                else:
                    self.events.put((host, message))
        except ChannelClosed:
            host.gone.wait(_EXPLAINED_S)  # its engine may know how
            self.events.put((host, messages.Ended("its connection closed")))

    def _keep(self, message: messages.Keep) -> None:
        self._kept[message.name] = message.content
        while len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]

    def _ended(self, host: Host, how: str) -> None:
        self.events.put((host, messages.Ended(how)))
        host.gone.set()

    def _print(self, host: Host, line: str) -> None:
        del host.lines[:-_SHOWN_LINES]
        host.lines.append(line)
        self._printed(host.name, line)

    def _check_versions(self, hello: messages.Hello) -> None:
        """Refuse a host with other versions.

        Raises:
            ClusterError: the first that differs.
        """
        for name, ours in self._versions.items():
            theirs = hello.versions.get(name)
            if theirs != ours:
                raise ClusterError(
                    f"host {hello.name}",
                    found=f"{name} {theirs}",
                    expected=f"{name} {ours}, as the controller has",
                    fix="install the same versions on all hosts",
                )
