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
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ziggurat.core.errors import ServeError
from ziggurat.serve.errors import RequestError
from ziggurat.serve.http import describe_for
from ziggurat.serve.memory import Crowded
from ziggurat.serve.predict import wire
from ziggurat.serve.predict.grpc_protocol import (
    CANCEL,
    FAILED,
    NAMES,
    START,
    STARTED,
    FrontSettings,
)
from ziggurat.serve.predict.grpc_reading import READ_SECONDS, Reader
from ziggurat.serve.predict.link import INLINE, Link, Message
from ziggurat.serve.predict.memory_file import MemoryFile
from ziggurat.serve.predict.messages import METHODS, POOL, SERVICE
from ziggurat.serve.tls import Tls

FREE = frozenset({"ServerLive", "ServerReady"})
"""Calls that need no key."""
CONTROL = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
"""Calls for an administrator's key, if there is one."""
_ERROR, _RESPONSE = 1, 2
"""Fields of ``ModelStreamInferResponse``."""

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


class NoKey(RequestError):
    """Error: the call bears no known key."""

    status = 401


class Answered(RequestError):
    """Error that the server process answered with."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Front:
    """Front server of gRPC in its own process, between clients and a
    :class:`~ziggurat.serve.predict.link.Link`."""

    def __init__(self, asked: FrontSettings, link: Link):
        self._asked, self._link = asked, link
        self._admin_keys = [f"bearer {key}".encode() for key in asked.admin_keys]
        self._keys = [f"bearer {key}".encode() for key in asked.keys]
        if self._keys:
            self._keys += self._admin_keys
        self._reader = Reader(asked)
        self._counts = {"inferences": 0, "streams": 0}
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._last = 0

    async def start(self) -> int:
        """Start to listen; returns the port.

        Raises:
            ServeError: the port is in use.
        """
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
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
        """Accept no more calls, and give those under way time to end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(seconds)

    async def watch(self) -> None:
        """Keep memory within this process's share, for as long as it runs."""
        await self._reader.watch()

    def answered(self, message: Message) -> None:
        """Take the server process's answers from the link."""
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
                    data = await asyncio.wait_for(anext(requests, b""), READ_SECONDS)
                    return await self._call(name, data)
                with self._counted("inferences", self._asked.calls):
                    return await self._call(name, await self._reader.read(requests))
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
                while (data := await self._reader.next_of_stream(requests)) is not None:
                    try:
                        answer = wire.field(_RESPONSE, await self._call("ModelInfer", data))
                    except Exception as error:
                        answer = wire.field(_ERROR, _described(error)[1].encode())
                    yield answer
        except Exception as error:
            status, text = _described(error)
            await context.abort(CODES.get(status, grpc.StatusCode.INTERNAL), text)

    async def _call(self, name: str, data: bytes) -> bytes:
        """Answer of the server to a message.

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
                self._reader.tidy_soon()
        content = message.content
        if isinstance(content, MemoryFile):
            content = await asyncio.to_thread(lambda file: bytes(file.view()), content)
        if message.code:
            raise Answered(message.code, content.decode())
        return content

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


def _described(error: Exception) -> tuple[int, str]:
    """HTTP status and text of an error; the server's are told as they came."""
    if isinstance(error, Answered):
        return error.status, str(error)
    status, body = describe_for("/v2", error)
    return status, body["error"]


def _reflected() -> Any:
    """Our pool with the files of the services that come with it."""
    for module in (health_pb2, reflection_pb2):
        POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return POOL


async def serve(end: socket.socket) -> None:
    """Run the gRPC server until the server process ends it or is gone."""
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
    front = Front(msgspec.json.decode(first.content, type=FrontSettings), link)
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
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
