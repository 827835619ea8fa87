"""The gRPC port, in a process of its own: it reads messages and hands them to the server.

A message is copied several times while it arrives, with the interpreter's lock held; in the
server's process that would hold up every other client. Here it holds up gRPC alone. The server
answers in bytes that go to the client as they are (:mod:`.grpc_service`), so nothing here knows
models.

Messages are bytes here, so that a broken one is INVALID_ARGUMENT and not an internal error. Every
call is handled as a stream of requests, also those of one: the library then reads a message when it
is asked to, so that the key is checked and room is found before any byte of it is in memory. The
health and reflection services have no limits.
"""

import asyncio
import contextlib
import ctypes
import gc
import hmac
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer as _HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ziggurat.core.errors import ServeError
from ziggurat.serve.errors import RequestError
from ziggurat.serve.http import describe_for
from ziggurat.serve.predict import wire
from ziggurat.serve.predict.link import INLINE, Link, Message
from ziggurat.serve.predict.memory import Crowded
from ziggurat.serve.predict.memory_file import MemoryFile
from ziggurat.serve.predict.messages import METHODS, POOL, SERVICE
from ziggurat.serve.tls import Tls

FREE = frozenset({"ServerLive", "ServerReady"})
"""Calls that need no key."""
CONTROL = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
"""Calls for an administrator's key, if there is one."""
NAMES = sorted(METHODS)
"""Methods, by the code of the message that calls them."""
START, STARTED, FAILED, STOP, CANCEL = range(1000, 1005)
"""Codes of messages that are no calls; an answer's code is 0 or the HTTP status of its error."""
_READ_SECONDS = 20.0
"""How long one message may take to arrive, and how long it may wait for room to be read into."""
_FAST_SECONDS = 0.1
"""How long a message may take before it makes way for the next."""
_WATCH_SECONDS, _TIDY_SECONDS = 0.05, 0.2
"""How often memory is looked at, and how long after a large message it is given back."""
_ERROR, _RESPONSE = 1, 2
"""Fields of ``ModelStreamInferResponse``."""
_NICE = 5
"""Below the server, which answers liveness."""

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""HTTP status of an error -> status of the call."""


class Start(msgspec.Struct):
    """How to serve."""

    address: str
    limit: int
    """Bytes of the largest message."""
    calls: int
    """Inferences under way at once; more are refused."""
    streams: int
    """Streams open at once; more are refused."""
    fast: int
    """Messages of inferences that are read at once."""
    slow: int
    """Messages that took longer and are read on beside the others; more are refused."""
    memory: int
    """Bytes that messages being read may take in all."""
    keys: list[str] = []
    admin_keys: list[str] = []
    certificate: str = ""
    key: str = ""


class NoKey(RequestError):
    """The call bears no key that is known."""

    status = 401


class TooSlow(RequestError):
    """A message did not arrive in time."""

    status = 408


class Answered(RequestError):
    """An error that the server answered with."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Front:
    """The gRPC server, between its clients and a :class:`~ziggurat.serve.predict.link.Link`."""

    def __init__(self, asked: Start, link: Link):
        self._asked, self._link = asked, link
        self._admin_keys = [f"bearer {key}".encode() for key in asked.admin_keys]
        self._keys = [f"bearer {key}".encode() for key in asked.keys]
        if self._keys:
            self._keys += self._admin_keys
        # A message does not tell its size before it is read, and is there three times while it is:
        # in the transport, as it is put together, and as bytes. So few are read at once.
        self._fast, self._slow = asyncio.Semaphore(asked.fast), asyncio.Semaphore(asked.slow)
        self._counts = {"inferences": 0, "streams": 0}
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._last = 0
        self._reading: set[asyncio.Future[bytes | None]] = set()
        """The next messages of streams."""
        self._tidy = False
        """Whether large messages were here since memory was last given back."""

    async def start(self) -> int:
        """Listen; the port.

        Raises:
            ServeError: the port is in use.
        """
        self._health = _HealthServicer()
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", self._asked.limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        found = {
            name: grpc.stream_unary_rpc_method_handler(self._unary(name))
            for name in NAMES
            if not METHODS[name].streams
        }
        found["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        handlers = grpc.method_handlers_generic_handler(SERVICE, found)
        self._server.add_generic_rpc_handlers((handlers,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, pool=_reflected())
        port = self._bound()
        await self._server.start()
        serving = health_pb2.HealthCheckResponse.ServingStatus.SERVING
        for name in ("", SERVICE):
            await self._health.set(name, serving)
        return port

    def _bound(self) -> int:
        try:
            if not self._asked.certificate:
                return self._server.add_insecure_port(self._asked.address)
            files = Tls(Path(self._asked.certificate), Path(self._asked.key))
            certificate, key = files.read()
            credentials = grpc.ssl_server_credentials([(key, certificate)])
            return self._server.add_secure_port(self._asked.address, credentials)
        except RuntimeError:
            raise ServeError(
                f"gRPC address {self._asked.address}",
                found="it cannot be bound",
                expected="a free port",
                fix="try another --grpc-port",
            ) from None

    async def stop(self, seconds: int) -> None:
        """Take no more calls and give those under way time to end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(seconds)

    def answered(self, message: Message) -> None:
        """Take in what the server answers."""
        future = self._waiting.pop(message.number, None)
        if future is not None and not future.done():
            future.set_result(message)

    def _unary(self, name: str) -> Any:
        """A call of one message each way."""

        async def answer(requests: AsyncIterator[bytes], context: Any) -> bytes:
            try:
                if name not in FREE:
                    self._check_key(context, name in CONTROL)
                if name != "ModelInfer":
                    data = await asyncio.wait_for(anext(requests, b""), _READ_SECONDS)
                    return await self._call(name, data)
                with self._counted("inferences", self._asked.calls):
                    return await self._call(name, await self._read(requests))
            except Exception as error:
                status, text = _described(error)
                await context.abort(CODES.get(status, grpc.StatusCode.INTERNAL), text)
                raise  # abort does not return

        return answer

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """One answer for each request, in order; an error is an answer too and ends nothing."""
        try:
            self._check_key(context)
            with self._counted("streams", self._asked.streams):
                while (data := await self._next(requests)) is not None:
                    try:
                        answer = wire.field(_RESPONSE, await self._call("ModelInfer", data))
                    except Exception as error:
                        answer = wire.field(_ERROR, _described(error)[1].encode())
                    yield answer
        except Exception as error:
            status, text = _described(error)
            await context.abort(CODES.get(status, grpc.StatusCode.INTERNAL), text)

    async def _call(self, name: str, data: bytes) -> bytes:
        """What the server answers to a message.

        Raises:
            Answered: it answered with an error.
        """
        self._last += 1
        number, future = self._last, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        large = len(data) > INLINE
        try:
            await self._link.send(number, NAMES.index(name), [data])
            del data
            message = await future
        except asyncio.CancelledError:
            await self._link.send(number, CANCEL, [])
            raise
        finally:
            self._waiting.pop(number, None)
            if large:  # once the call has ended
                asyncio.get_running_loop().call_later(_TIDY_SECONDS, self._mark)
        content = message.content
        if isinstance(content, MemoryFile):
            content = await asyncio.to_thread(lambda file: bytes(file.view()), content)
        if message.code:
            raise Answered(message.code, content.decode())
        return content

    async def _next(self, requests: AsyncIterator[bytes]) -> bytes | None:
        """The next message of a stream; None at its end.

        A stream may wait for ever, so it takes no place among the messages being read.

        Raises:
            Crowded: :meth:`watch` gave up on it.
        """

        async def whole() -> bytes | None:
            return await anext(requests, None)

        reading = asyncio.ensure_future(whole())
        self._reading.add(reading)
        try:
            await asyncio.wait({reading})
            if reading.cancelled():
                raise _crowded("messages of streams")
            return reading.result()
        finally:
            self._reading.discard(reading)
            reading.cancel()

    async def watch(self) -> None:
        """Give up on all streams that wait for a message when messages take too much memory: which
        of them are sending cannot be seen."""
        limit = _resident() + self._asked.memory
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._tidy:
                # The library leaves messages of failed calls in cycles, and counts no bytes.
                self._tidy = False
                gc.collect()
                await asyncio.to_thread(_trim)
            if self._reading and _resident() > limit:
                for reading in self._reading:
                    reading.cancel()
                self._tidy = True

    def _mark(self) -> None:
        self._tidy = True

    @contextlib.contextmanager
    def _counted(self, what: str, limit: int) -> Iterator[None]:
        """Count what is under way.

        Raises:
            Crowded: there are as many as there may be.
        """
        if self._counts[what] >= limit:
            expected = f"fewer than {limit}"
            raise Crowded(what, found=limit, expected=expected, fix="try again later")
        self._counts[what] += 1
        try:
            yield
        finally:
            self._counts[what] -= 1

    async def _read(self, requests: AsyncIterator[bytes]) -> bytes:
        """One message, read when there is room for it; a slow one makes way for the next.

        Raises:
            RequestError: there is no room, or it does not arrive in time.
        """

        async def whole() -> bytes:
            return await anext(requests, b"")

        try:
            async with asyncio.timeout(_READ_SECONDS):
                await self._fast.acquire()
        except TimeoutError:
            raise _crowded("messages being read") from None
        lane, reading = self._fast, asyncio.ensure_future(whole())
        try:
            await asyncio.wait({reading}, timeout=_FAST_SECONDS)
            if not reading.done():
                if self._slow.locked():
                    raise _crowded("messages that come slowly")
                self._fast.release()
                lane = self._slow
                await lane.acquire()
                await asyncio.wait({reading}, timeout=_READ_SECONDS)
            if not reading.done():
                raise TooSlow(
                    "message", found=f"not whole in {_READ_SECONDS:.0f} s", expected="its end"
                )
            return reading.result()
        finally:
            reading.cancel()
            lane.release()

    def _check_key(self, context: Any, control: bool = False) -> None:
        keys = self._admin_keys if control and self._admin_keys else self._keys
        if not keys:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        scheme, _, token = str(given).partition(" ")
        text = f"{scheme.lower()} {token.strip()}".encode()
        # All are compared, each in constant time: timing tells nothing about them.
        equal = [hmac.compare_digest(text, key) for key in keys]
        if not any(equal):
            raise NoKey(
                "administrator's key" if keys is self._admin_keys else "API key",
                found="none that is known",
                expected="metadata authorization: Bearer KEY",
            )


def _crowded(what: str) -> Crowded:
    return Crowded(what, found="as many as there is room for", expected="fewer",
                   fix="try again later")  # fmt: skip


def _described(error: Exception) -> tuple[int, str]:
    """HTTP status and text of an error; the server's are told as they came."""
    if isinstance(error, Answered):
        return error.status, str(error)
    status, body = describe_for("/v2", error)
    return status, body["error"]


def _resident() -> int:
    """Bytes of memory that this process takes; 0 where that is not told."""
    try:
        with open("/proc/self/statm") as sizes:
            return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _trim() -> None:
    """Give memory back that large messages have left in the allocator; only glibc keeps it."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _reflected() -> Any:
    """Our pool with the files of the services that come with it."""
    for module in (health_pb2, reflection_pb2):
        POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return POOL


async def serve(end: socket.socket) -> None:
    """Serve until the server says so, or has gone."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    front: Front | None = None

    def arrived(message: Message) -> None:
        if front is None or message.code >= START:
            inbox.put_nowait(message)
        else:
            front.answered(message)

    link = Link(end, arrived, lambda: os._exit(1))  # no server: nothing to serve, nobody to tell
    first = await inbox.get()
    assert isinstance(first.content, bytes)
    front = Front(msgspec.json.decode(first.content, type=Start), link)
    try:
        port = await front.start()
    except ServeError as error:
        await link.send(0, FAILED, [str(error).encode()])
        return
    await link.send(0, STARTED, [str(port).encode()])
    gc.freeze()
    watching = asyncio.create_task(front.watch())
    last = await inbox.get()
    watching.cancel()
    await front.stop(last.number)


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
