"""Clients that send slowly: how long the server waits for headers and for bodies.

A client that opens a connection and sends little by little holds memory and a place in every table
of the server. Headers must be whole :data:`HEADER_SECONDS` after their first byte, or after the
connection was made; a body may pause for :data:`PAUSE_SECONDS` and must come with
:data:`BYTES_A_SECOND` on average.
"""

import asyncio
import contextlib
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ziggurat.serve.accepting import closed_by_client
from ziggurat.serve.errors import RequestError

HEADER_SECONDS = 10.0
PAUSE_SECONDS = 10.0
BYTES_A_SECOND = 2**15
_GRACE_SECONDS = 20.0
"""Time before the average counts."""
_SMALL = 2**16
"""Bytes of a body that is read to its end although nobody wants it."""
LINGER_SECONDS, LINGER_BYTES = 2.0, 2**24
"""How long, and how many bytes of, an unwanted body are read after an early answer. A connection
closed on a client that still sends is reset, and many clients then never see the answer."""


class BodyTooSlow(RequestError):
    """Error: the request's body does not arrive in time."""

    status = 408
    code = "timeout"


class BodyInTime:
    """Middleware with a time limit on bodies, which closes the connection after early answers.

    An answer that is sent before a large body was read, such as a refusal of its size, ends the
    connection: otherwise the rest of the body would have to be read. What the client is sending
    meanwhile is read and dropped, within bounds, so that it gets to the answer (RFC 9112, 9.6).

    Args:
        app: what reads the bodies.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        begun, size, whole = loop.time(), 0, False
        told = dict(scope["headers"]).get(b"content-length", b"")
        small = told.isdigit() and len(told) < 6 and int(told) <= _SMALL

        async def read() -> Message:
            nonlocal size, whole, small
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(PAUSE_SECONDS):
                    message = await receive()
            except TimeoutError:
                small = False
                raise _too_slow(f"none for {PAUSE_SECONDS:.0f} s") from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            late = loop.time() - begun - _GRACE_SECONDS
            if not whole and late > size / BYTES_A_SECOND:
                raise _too_slow(f"{size} bytes in {late + _GRACE_SECONDS:.0f} s")
            return message

        async def write(message: Message) -> None:
            if message["type"] == "http.response.start" and not whole and not small:
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if last and not whole and not small:
                await send({**message, "more_body": True})
                await _drop(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, read, write)


async def _drop(receive: Receive) -> None:
    """Read what still comes of a body, for a while."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while size < LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _too_slow(found: str) -> BodyTooSlow:
    return BodyTooSlow(
        "request body", found=found, expected=f"{BYTES_A_SECOND} bytes a second on average"
    )


class HeadersInTime(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Uvicorn's HTTP protocol with a time limit on headers.

    A request is not read whose client has closed the connection already: a client that asks and
    leaves, again and again, would otherwise have the server work for nobody.
    """

    cycle: Any
    transport: Any

    def connection_made(self, transport: Any) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._end = transport.get_extra_info("socket")
        self._watch: asyncio.TimerHandle | None = None
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._between_requests() and closed_by_client(self._end):
            self.transport.abort()
            return
        super().data_received(data)
        if self._between_requests():
            if self._watch is None:
                self._wait()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _between_requests(self) -> bool:
        """Whether no request is known whose headers are whole and whose answer is not sent."""
        cycle = getattr(self, "cycle", None)
        return cycle is None or cycle.response_complete

    def _wait(self) -> None:
        self._watch = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._give_up)

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _give_up(self) -> None:
        self._watch = None
        if self._between_requests():
            self.transport.abort()
