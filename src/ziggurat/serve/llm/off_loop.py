"""Work of requests on threads, so that the event loop answers others meanwhile."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ziggurat.serve.http import MAX_BODY, read_body
from ziggurat.serve.json_values import LARGE
from ziggurat.serve.memory import RequestMemory, Reservation

MEMORY = 32 * MAX_BODY
"""Bytes of the bodies under way, and of what is made of them, unless a server says otherwise."""
_DECODED = 4
"""Bytes that a large body is charged with besides its own, for each of them, while it is worked on:
its text takes as many where one of its characters needs four, and a template renders a copy."""

T = TypeVar("T")


class OffLoop:
    """Runs functions on threads: those of large requests one after another, to leave processors
    free, those of small ones at once.

    One of it serves all endpoints.

    Args:
        memory: the budget; default one of :data:`MEMORY` bytes.
    """

    def __init__(self, memory: RequestMemory | None = None):
        self.memory = memory or RequestMemory(MAX_BODY, MEMORY)
        self.one = anyio.CapacityLimiter(1)

    @contextlib.asynccontextmanager
    async def read(self, request: Request, limit: int = MAX_BODY) -> AsyncIterator["ReadBody"]:
        """A request's body of at most ``limit`` bytes; it is held until the context is left.

        Raises:
            RequestError: it is too large, or the requests under way leave no room for it.
        """
        held = self.memory.open()
        try:
            yield ReadBody(self, held, await read_body(request, limit, held))
        finally:
            held.close()


class ReadBody:
    """A complete request body, whose bytes count against the memory of requests under way."""

    def __init__(self, owner: OffLoop, held: Reservation, data: bytes):
        self._owner, self._held, self._data = owner, held, data
        self._size = len(data)

    def take(self) -> bytes:
        """Hand out the bytes, once, so that they go when they are decoded."""
        data, self._data = self._data, b""
        return data

    def keep(self, size: int) -> Reservation:
        """Reserve memory for data that you keep after the body is gone; close the reservation when
        you free the data.

        Raises:
            Crowded: the requests under way leave no room.
        """
        kept = self._owner.memory.open()
        kept.add(size, body=False)
        return kept

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Result of ``work(*args)`` on a thread.

        Raises:
            Crowded: it is large, and the requests under way leave no room for what it becomes.
        """
        if self._size <= LARGE:
            return await run_in_threadpool(work, *args)

        def charged() -> T:
            with self._held.more(_DECODED * self._size):
                return work(*args)

        return await anyio.to_thread.run_sync(charged, limiter=self._owner.one)
