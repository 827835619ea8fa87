"""Who may ask, and a record of who did: ASGI middleware around the whole application."""

import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ziggurat.serve.errors import Unauthorized
from ziggurat.serve.http import GONE, describe_for, json_response

OPEN = frozenset({"/health", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no key: probes and scrapers have none."""


CONTROL = re.compile(r"/v2/repository/models/[^/]+/(load|unload)/?")
"""Paths that change what is served."""


class RequireKey:
    """Middleware that answers 401 unless a request bears one of the keys.

    Args:
        app: what is guarded.
        keys: each opens everything, but for :data:`CONTROL` if there are administrator's keys;
            without any, everything else is open.
        admin_keys: each opens everything.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], admin_keys: Sequence[str] = ()):
        self._app = app
        self._admin_keys = [key.encode() for key in admin_keys]
        self._keys = [key.encode() for key in keys]
        if self._keys:
            self._keys += self._admin_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keys = self._wanted(scope)
        key = self._known(_token(dict(scope["headers"])), keys) if keys else None
        if key is not None:  # request.state.client: who asks, for what is shared out among clients
            scope["state"] = {**scope.get("state", {}), "client": f"key {key}"}
        if key is not None or not keys:
            await self._app(scope, receive, send)
            return
        error = Unauthorized(
            "administrator's key" if keys is self._admin_keys else "API key",
            found="none that is known",
            expected="Authorization: Bearer KEY, or x-api-key: KEY",
        )
        status, body = describe_for(scope["path"], error)
        response = json_response(body, status)
        response.headers["www-authenticate"] = "Bearer"
        await response(scope, receive, send)

    def _wanted(self, scope: Scope) -> list[bytes]:
        """The keys of which a request needs one; none if it needs none."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            return []
        if self._admin_keys and CONTROL.fullmatch(scope["path"]):
            return self._admin_keys
        return self._keys

    def _known(self, token: bytes, keys: Sequence[bytes]) -> int | None:
        """The number of a key; ``None`` for no key that is known."""
        if not token:
            return None
        # All are compared, each in constant time: timing tells nothing about them.
        equal = [hmac.compare_digest(token, key) for key in keys]
        return equal.index(True) if any(equal) else None


def _token(headers: Mapping[bytes, bytes]) -> bytes:
    """The key that a request bears: ``authorization: Bearer KEY``, or Anthropic's
    ``x-api-key: KEY``; empty for none."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    return headers.get(b"x-api-key", b"").strip()


class AccessLog:
    """Middleware that writes one line of JSON after each request.

    ``time_s`` (seconds since 1970), ``client``, ``method``, ``path``, ``status`` (499: the client
    left first), ``duration_s`` up to the last byte.

    Args:
        app: what is watched.
        write: gets the line.
    """

    def __init__(self, app: ASGIApp, write: Callable[[str], None]):
        self._app, self._write = app, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, whole = time.monotonic(), GONE, False

        async def watch(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if message["type"] == "http.response.body":
                whole = not message.get("more_body", False)

        try:
            await self._app(scope, receive, watch)
        finally:
            client = scope.get("client")
            record = {
                "time_s": round(time.time(), 3),
                "client": f"{client[0]}:{client[1]}" if client else None,
                "method": scope["method"],
                "path": scope["path"],
                "status": status if whole else GONE,
                "duration_s": round(time.monotonic() - begun, 6),
            }
            self._write(msgspec.json.encode(record).decode())
