"""HTTP helpers of every endpoint: bounded bodies, OpenAI's errors, event streams, lost clients."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ziggurat.core.json_types import Json, JsonObject
from ziggurat.serve.errors import RequestError, TooLarge
from ziggurat.serve.memory import Reservation

_log = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
Describe = Callable[[Exception], tuple[int, Any]]
"""Status and body of an error."""
MAX_BODY = 8 * 2**20
GONE = 499
"""Status logged for a client that left before its answer; nobody reads it."""


class ClientGone(Exception):
    """Error: the client closed the connection."""


async def read_body(
    request: Request, limit: int = MAX_BODY, held: Reservation | None = None
) -> bytes:
    """The request's body.

    Args:
        request: the request.
        limit: most bytes.
        held: is charged for the bytes as they come.

    Raises:
        TooLarge: it has more than ``limit`` bytes.
        Crowded: the requests under way leave no room for it.
        ClientGone: the client left before its end.
    """
    parts, size = [], 0
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told[:18]) > limit:
        raise TooLarge("request body", found=f"over {limit} bytes", expected="fewer")
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise TooLarge("request body", found=f"over {limit} bytes", expected="fewer")
            if held is not None:
                held.add(len(part))
            parts.append(part)
    except ClientDisconnect:
        raise ClientGone from None
    return b"".join(parts)


def json_response(body: Json, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> JsonObject:
    """An error as OpenAI's clients expect it; the message becomes one line."""
    fields = {"message": " ".join(message.split()), "type": kind, "param": param, "code": code}
    clean = {k: v and v.encode("utf-8", "replace").decode() for k, v in fields.items()}
    return {"error": clean}


def describe(error: Exception) -> tuple[int, JsonObject]:
    """Status and body of the answer to an exception that a handler raised."""
    if isinstance(error, RequestError):
        return error.status, error_body(str(error), error.kind, error.param, error.code)
    if isinstance(error, HTTPException):
        return error.status_code, error_body(error.detail, "invalid_request_error")
    _log.error("request failed", exc_info=error)
    return 500, error_body("the server failed; its log says why", "server_error")


ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Types of errors by status, as Anthropic's clients know them; others are ``api_error``."""


def describe_as_anthropic(error: Exception) -> tuple[int, JsonObject]:
    """Status and body like :func:`describe`, in the form of Anthropic's clients."""
    status, body = describe(error)
    kind = ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return status, {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}


def describe_for(path: str, error: Exception) -> tuple[int, JsonObject]:
    """Status and body like :func:`describe`; below ``/v1/messages`` in the form of Anthropic's
    clients, and below ``/v2`` in that of KServe's, ``{"error": TEXT}``."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return describe_as_anthropic(error)
    status, body = describe(error)
    if path == "/v2" or path.startswith("/v2/"):
        return status, {"error": body["error"]["message"]}
    return status, body


def http_error(error: Exception, describe: Describe = describe) -> Response:
    """The response of an error, with ``Retry-After`` where the same request may succeed later."""
    status, body = describe(error)
    response = json_response(body, status)
    seconds = getattr(error, "retry_after", None)
    if seconds is not None:
        response.headers["retry-after"] = str(seconds)
    _forget_frames(error)
    return response


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold, such as a large request.

    A frame that holds the error that it raised is a circle, which stays until a collection.
    """
    while error is not None:
        error.__traceback__, error = None, error.__context__


def guarded(handler: Handler, describe: Describe = describe) -> Handler:
    """Wrap a handler so that its errors become responses.

    Args:
        handler: the endpoint.
        describe: status and body of an error.
    """

    async def call(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGone:
            return Response(status_code=GONE)
        except Exception as error:
            return http_error(error, describe)

    return call


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``, and cancel it if the client leaves; the request's body must have been read.

    Raises:
        ClientGone: the client left; ``work`` has been cancelled.
    """

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    job, gone = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientGone
        return job.result()
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.wait({job, gone})


class EventStream(Response):
    """Server-sent events as OpenAI sends them: ``data: {...}`` lines, then ``data: [DONE]``.

    Args:
        bodies: closed at the end. An error becomes a last event of OpenAI's error form.
        release: called at the end, also when the client goes before the first event.
        named: name each event by its body's ``type``, and end without ``[DONE]``, as OpenAI does
            for ``/v1/responses``.
    """

    media_type = "text/event-stream"

    def __init__(
        self, bodies: AsyncGenerator[Json], release: Callable[[], None], *, named: bool = False
    ):
        super().__init__()
        self._bodies, self._release, self._named = bodies, release, named
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        try:
            await send({"type": "http.response.start", **start})
            await unless_gone(receive, self._send(send))
        except (ClientGone, OSError):
            return
        finally:
            self._release()

    async def _send(self, send: Send) -> None:
        async def put(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async for body in self._bodies:
                name = f"event: {body['type']}\n".encode() if self._named else b""
                await put(name + b"data: " + msgspec.json.encode(body) + b"\n\n")
        except OSError:
            raise
        except Exception as error:
            await put(b"data: " + msgspec.json.encode(describe(error)[1]) + b"\n\n", False)
            return
        finally:
            await self._bodies.aclose()
        await put(b"" if self._named else b"data: [DONE]\n\n", False)
