"""Work of requests on threads, so that the event loop answers others meanwhile."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from starlette.concurrency import run_in_threadpool

LARGE = 64 * 2**10
"""Bytes of a body whose parsing and tokenising take many milliseconds."""

T = TypeVar("T")


class OffLoop:
    """Runs functions on threads: those of large requests one after another, so that they leave
    processors to all else; those of small ones at once."""

    def __init__(self):
        self._one = anyio.CapacityLimiter(1)

    async def __call__(self, size: int, work: Callable[..., T], *args: Any) -> T:
        """Result of ``work(*args)``; ``size`` is that of the request's body in bytes."""
        if size <= LARGE:
            return await run_in_threadpool(work, *args)
        return await anyio.to_thread.run_sync(functools.partial(work, *args), limiter=self._one)
