"""The process on a host: does what the controller says, and ends when the controller is gone.

The main thread runs functions, so that they may use signals and JAX as in any script. A second
thread hears commands and a third says that the process lives. Neither needs the main thread: a
process that is stopped is silent, and one whose function hangs, or compiles for an hour, is not.
"""

import contextlib
import faulthandler
import logging
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from ziggurat.cluster import functions, messages
from ziggurat.cluster.blame import of_a_peer
from ziggurat.cluster.channel import Channel, ChannelClosed, connect
from ziggurat.cluster.world import World
from ziggurat.core.errors import ZigguratError

_log = logging.getLogger(__name__)
BEAT_S = 0.5
ORPHAN_S = 30.0
"""Silence of the controller after which a host ends itself."""
FETCH_S = 60.0
"""How long to wait for what the controller keeps."""
_COMPILERS = tuple(
    os.path.join("jax", "_src", *parts)
    for parts in (
        ("compiler.py",),
        ("interpreters", "mlir.py"),
        ("interpreters", "partial_eval.py"),
    )
)
"""Files whose functions are on the stack while JAX (0.10) compiles, lowers or traces, and while it
runs a compiled program are not."""
ORPHANED = 3
"""Exit code then."""


class Worker:
    """A host's connection to the controller, and the functions that it runs for it."""

    def __init__(self, name: str, life: str, channel: Channel):
        self._name, self._channel = name, channel
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._world: World | None = None
        self._heard = time.monotonic()
        self._noticed = False
        self._fetched: queue.SimpleQueue[messages.Kept] = queue.SimpleQueue()
        channel.send(messages.Hello(name, life, os.getpid(), this_machine(), installed_versions()))

    def run(self) -> None:
        """Serve the controller until it ends this host; runs in the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._notice)
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        while True:
            task = self._tasks.get()
            if isinstance(task, messages.End):
                return
            if isinstance(task, messages.Interrupt):
                self._leave()
                continue
            self._send(self._answer(task))

    def keep(self, name: str, content: bytes) -> None:
        """Ask the controller to keep content for hosts of later worlds."""
        self._send(messages.Keep(name, content))

    def fetch(self, name: str) -> bytes | None:
        """Fetch content that a host asked the controller to keep; ``None`` if it has none."""
        self._send(messages.Fetch(name))
        try:
            while True:
                answer = self._fetched.get(timeout=FETCH_S)
                if answer.name == name:
                    return answer.content
        except queue.Empty:
            return None

    def _answer(self, task: messages.Call | messages.Enter) -> messages.Returned | messages.Raised:
        try:
            if isinstance(task, messages.Enter):
                return messages.Returned(task.number, self._enter(task))
            first = (self._world,) if task.in_world else ()
            value = functions.call(task.payload, *first)
            left = self._world is not None and task.in_world and self._world.left
            payload = functions.dump(value, "the value that it returned")
            return messages.Returned(task.number, payload, left)
        except BaseException as error:
            if isinstance(error, SystemExit):
                error = ZigguratError("the function", found=f"a call of exit({error.code})")
            users, peers = isinstance(error, ZigguratError), of_a_peer(error)
            text = "".join(traceback.format_exception(error))
            line = str(error).strip().partition("\n")[0][:500]
            traceback.clear_frames(error.__traceback__)  # arrays that they hold would live on
            return messages.Raised(task.number, type(error).__name__, line, text, users, peers)

    def _enter(self, task: messages.Enter) -> bytes:
        from ziggurat.mesh import world

        self._leave()
        world.enter(task.address, task.count, task.index, task.within_s)

        def tell(step: int, ledger_s: Mapping[str, float]) -> None:
            self._send(messages.ProgressReport(task.generation, step, dict(ledger_s)))

        place = (self._name, task.generation, task.index, task.count)
        self._world = World(*place, tell, self)
        return functions.dump(None, "nothing")

    def _leave(self) -> None:
        from ziggurat.mesh import world

        world.leave()
        self._world = None

    def _listen(self) -> None:
        """Hear commands; in a thread of its own."""
        while True:
            try:
                message = self._channel.receive()
            except ChannelClosed:
                _end("the controller is gone")
            self._heard = time.monotonic()
            if isinstance(message, (messages.Call, messages.Enter)):
                if isinstance(message, messages.Call) and message.in_world and self._world:
                    self._world = self._world.again()  # before a command can mean this call
                self._tasks.put(message)
            elif isinstance(message, messages.Hold):
                self._send(
                    messages.PassedBoundary(-1 if self._world is None else self._world.hold())
                )
            elif isinstance(message, messages.Go) and self._world is not None:
                self._world.go(message.leave_at)
            elif isinstance(message, messages.Interrupt):
                self._interrupt(message.reason)
                self._tasks.put(message)
            elif isinstance(message, messages.Dump):
                faulthandler.dump_traceback(all_threads=True)
            elif isinstance(message, messages.Kept):
                self._fetched.put(message)
            elif isinstance(message, messages.End):
                self._tasks.put(message)

    def _interrupt(self, reason: str) -> None:
        from ziggurat.mesh import processes, world

        processes.interrupt(reason)
        world.sever()
        if self._world is not None:
            self._world.go(None)

    def _notice(self, *_: object) -> None:
        """SIGTERM; the main thread may be sending something just now."""
        self._noticed = True

    def _beat(self) -> None:
        while True:
            if self._noticed:
                self._noticed = False
                self._send(messages.Notice())
            step = -1 if self._world is None else self._world.step
            self._send(messages.Beat(step, compiling()))
            if time.monotonic() - self._heard > ORPHAN_S:
                _end(f"nothing heard of the controller for {ORPHAN_S:.0f} s")
            time.sleep(BEAT_S)

    def _send(self, message: Any) -> None:
        try:
            self._channel.send(message)
        except ChannelClosed:
            _end("the controller is gone")


def serve(
    address: tuple[str, int],
    secret: bytes,
    name: str,
    life: str,
    preload: tuple[str, ...] = (),
    *,
    send_output: bool = False,
) -> None:
    """Run this process as host ``name`` of the controller at ``address``; returns when the
    controller ends it.

    Args:
        address: where the controller listens.
        secret: see :mod:`ziggurat.cluster.channel`.
        name: of this host.
        life: tells this process from earlier ones of the same name.
        preload: modules to import before saying hello.
        send_output: send what this process prints over the channel, where nobody else reads it.

    Raises:
        ClusterError: the controller cannot be reached.
    """
    import importlib

    import jax

    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)  # the controller does that
    for module in ("ziggurat.mesh.world", *preload):
        importlib.import_module(module)
    logging.getLogger("ziggurat").setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    channel = connect(address, secret)
    if send_output:
        _send_output(channel)
    Worker(name, life, channel).run()


def compiling() -> bool:
    """Whether a thread of this process traces, lowers or compiles a program. JAX cannot be
    interrupted in that, and its result is worth waiting for."""
    for top in sys._current_frames().values():
        frame: Any = top
        while frame is not None:
            if frame.f_code.co_filename.endswith(_COMPILERS):
                return True
            frame = frame.f_back
    return False


def installed_versions() -> dict[str, str]:
    """Versions of the packages that must be equal on all hosts."""
    import importlib.metadata

    found = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    from ziggurat import __version__

    return {"python": platform.python_version(), "ziggurat": __version__, **found}


def this_machine() -> str:
    """Identifier of this machine: hosts with an equal one share process ids."""
    spaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("pid", "net")]
    return "/".join(map(str, (platform.node(), *spaces)))


def _send_output(channel: Channel) -> None:
    """From now on all that this process and its children print goes to the controller."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    for standard in (1, 2):
        os.dup2(writing, standard)
    os.close(writing)

    def forward() -> None:
        with open(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(ChannelClosed):
                    channel.send(messages.Output(line.rstrip("\n")))

    threading.Thread(target=forward, name="output", daemon=True).start()


def _end(why: str) -> None:
    """End at once: the coordination service is gone too, and nobody is left to save for."""
    print(f"{why}; this host ends", file=sys.stderr, flush=True)
    os._exit(ORPHANED)


def main() -> None:
    """Run ``python -m ziggurat.cluster.worker HOST PORT NAME LIFE [MODULE ...]``, with the secret
    on standard input."""
    host, port, name, life, *preload = sys.argv[1:]
    secret = bytes.fromhex(sys.stdin.readline().strip())
    try:
        serve((host, int(port)), secret, name, life, tuple(preload))
    except ZigguratError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
