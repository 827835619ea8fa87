"""The server's side of the gRPC front: its process, started, watched, restarted and stopped.

The port, the messages as they arrive, keys and limits are the front's (:mod:`.grpc_front`), a child
process. It hands over whole messages, large ones as files in memory, and gets answers for
:class:`~ziggurat.serve.predict.grpc_calls.Calls`. A front that ends by itself is started again on
the same port.
"""

import asyncio
import collections
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from ziggurat.core.errors import ServeError
from ziggurat.serve import turns
from ziggurat.serve.predict import grpc_protocol as protocol
from ziggurat.serve.predict.grpc_calls import Calls
from ziggurat.serve.predict.link import Link, Message, pair
from ziggurat.serve.predict.memory_file import MemoryFile
from ziggurat.serve.predict.operations import Operations, describe
from ziggurat.serve.tls import Tls

_log = logging.getLogger(__name__)
_OVERHEAD = 2**16
"""Most bytes of a message besides its tensors."""
_CALLS = 1024
"""Inferences under way at once; more are refused."""
_STREAMS = 256
"""Streams open at once; more are refused."""
_MOST_SLOW = 64
"""Messages that come slowly and are read at once, whatever the memory."""
_NICE = 10
"""Niceness of the gRPC front: below the server, which answers liveness."""
_START_SECONDS = 60.0
"""How long the front may take to start."""
_ENDS, _ENDS_SECONDS = 5, 300.0
"""As often in so long the front may end by itself; then the server has failed."""


class GrpcServer:
    """Port of gRPC for a repository, with the health and reflection services.

    Args:
        operations: what it serves.
        address: ``HOST:PORT``; port 0 takes a free one.
        keys: with any, calls need one of them as ``authorization: Bearer KEY``; the health and
            reflection services do not, nor do ServerLive and ServerReady.
        admin_keys: with any, loading and unloading need one of them; they open the rest too.
        tls: certificate and key; without, the port speaks plain text.
    """

    def __init__(
        self,
        operations: Operations,
        address: str,
        keys: Sequence[str] = (),
        *,
        admin_keys: Sequence[str] = (),
        tls: Tls | None = None,
    ):
        self._operations, self._calls = operations, Calls(operations)
        largest, room = operations.settings.max_body, operations.front_bytes
        self._asked = protocol.FrontSettings(
            address=address,
            limit=largest + _OVERHEAD,
            calls=_CALLS,
            streams=_STREAMS,
            fast=1,
            slow=min(_MOST_SLOW, max(1, room // largest - 2)),
            memory=room,
            keys=list(keys),
            admin_keys=list(admin_keys),
            certificate="" if tls is None else str(tls.certificate),
            key="" if tls is None else str(tls.key),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ends: collections.deque[float] = collections.deque(maxlen=_ENDS)
        self._stopping = False
        self._gone = asyncio.Event()
        self._restart: asyncio.Task[None] | None = None
        self.failure: ServeError | None = None
        """Reason that the port no longer serves."""
        self.port = 0
        """The port it listens on, once started."""

    async def start(self) -> None:
        """Start the gRPC process; calls are answered on the event loop that runs this.

        Raises:
            ServeError: the port is in use, or there is no process to be had.
        """
        self._started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with pair() as (here, there):
            command = [sys.executable, "-m", protocol.FRONT, str(there.fileno())]
            try:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[there.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "MALLOC_ARENA_MAX": "2"},  # each keeps what it once had
                    process_group=0,  # Ctrl-C at the server is not for it
                )
            except OSError as error:
                raise ServeError(
                    "gRPC front", found=f"no process: {error.strerror}", expected="one"
                ) from None
            turns.raise_nice(self._process.pid, _NICE)
            self._gone.clear()
            self._link = Link(here, self._arrived, self._ended)
        try:
            await self._link.send(0, protocol.START, [msgspec.json.encode(self._asked)])
            self.port = await asyncio.wait_for(self._started, _START_SECONDS)
        except (OSError, TimeoutError) as error:
            self._kill()
            raise ServeError("gRPC front", found=error, expected="its start") from None
        except ServeError:
            self._kill()
            raise
        host = self._asked.address.rpartition(":")[0]
        self._asked.address = f"{host}:{self.port}"  # the same one if it must start again

    async def stop(self, seconds: int) -> None:
        """Accept no more calls, and give those under way time to end."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
        with contextlib.suppress(OSError, TimeoutError):
            await self._link.send(seconds, protocol.STOP, [])
            await asyncio.wait_for(self._gone.wait(), seconds + 5)
        self._kill()

    def _kill(self) -> None:
        self._stopping = True
        self._link.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _arrived(self, message: Message) -> None:
        match message.code:
            case protocol.STARTED:
                assert isinstance(message.content, bytes)
                self._started.set_result(int(message.content))
            case protocol.FAILED:
                assert isinstance(message.content, bytes)
                self._started.set_exception(ServeError(message.content.decode()))
            case protocol.CANCEL:
                if task := self._tasks.get(message.number):
                    task.cancel()
            case _:
                loop = asyncio.get_running_loop()
                task = self._tasks[message.number] = loop.create_task(self._answer(message))
                task.add_done_callback(lambda _: self._tasks.pop(message.number, None))

    async def _answer(self, message: Message) -> None:
        held, content, code = self._operations.memory.open(), message.content, 0
        filed = content if isinstance(content, MemoryFile) else None
        try:
            held.add(len(content) if isinstance(content, bytes) else content.size)
            parts = await self._calls.answer(protocol.NAMES[message.code], content, held)
        except Exception as error:
            code, text = describe(error)
            parts = [text.encode()]
        finally:
            held.close()
            if filed is not None:  # freeing many pages takes milliseconds
                asyncio.get_running_loop().run_in_executor(None, filed.close)
        with contextlib.suppress(OSError):  # the front has gone, and its clients with it
            await self._link.send(message.number, code, parts)

    def _ended(self) -> None:
        self._gone.set()
        for task in list(self._tasks.values()):
            task.cancel()
        if not self._started.done():
            self._started.set_exception(
                ServeError("gRPC front", found="its end", expected="a port")
            )
        elif not self._stopping:
            self._restart = asyncio.get_running_loop().create_task(self._again())

    async def _again(self) -> None:
        """Start the front again, unless it has ended too often."""
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait)
        _log.error("the gRPC front ended with exit code %d; it is started again", code)
        now = time.monotonic()
        often = len(self._ends) == _ENDS and now - self._ends[0] < _ENDS_SECONDS
        self._ends.append(now)
        try:
            if often:
                raise ServeError(
                    "gRPC front", found=f"{_ENDS} ends in {_ENDS_SECONDS:.0f} s", expected="none"
                )
            await self.start()
        except ServeError as error:
            _log.error("%s", error)
            self.failure = error
