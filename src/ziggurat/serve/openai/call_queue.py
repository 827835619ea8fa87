"""One request at a time through a model that is called on one thread."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

from ziggurat.serve.errors import QueueFull

P = ParamSpec("P")
T = TypeVar("T")


class CallQueue:
    """Calls that wait for each other; more than ``most`` waiting ones are refused.

    Args:
        most: requests that may wait.
    """

    def __init__(self, most: int):
        self._turn, self._waiting, self._most = asyncio.Lock(), 0, most

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of ``call`` on a thread, when it is this request's turn.

        Raises:
            QueueFull: too many requests wait.
        """
        if self._waiting >= self._most:
            raise QueueFull.of(self._waiting, self._most)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1

        async def in_turn() -> T:
            try:
                return await run_in_threadpool(call, *args, **kwargs)
            finally:
                self._turn.release()

        # Shielded: a thread cannot be given up, and the next one waits until it is done.
        return await asyncio.shield(asyncio.ensure_future(in_turn()))
