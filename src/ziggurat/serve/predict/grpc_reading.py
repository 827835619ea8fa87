"""Reading of gRPC messages within a share of memory.

The library does not tell a message's size before it is read, and has it three times while it is: in
the transport, as it is put together, and as bytes. So few are read at once, memory is looked at all
the time, and it is given back to the system after large messages.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
from collections.abc import AsyncIterator

from ziggurat.serve.errors import RequestError
from ziggurat.serve.memory import Crowded
from ziggurat.serve.predict.grpc_protocol import FrontSettings

READ_SECONDS = 20.0
"""How long one message may take to arrive, and how long it may wait for room to be read into."""
_FAST_SECONDS = 0.1
"""How long a message may take before it makes way for the next."""
_WATCH_SECONDS, _TIDY_SECONDS = 0.05, 0.2
"""How often memory is looked at, and how long after a large message it is given back."""


class TooSlow(RequestError):
    """Error: a message did not arrive in time."""

    status = 408


class Reader:
    """Reads the messages of all calls within a memory budget."""

    def __init__(self, asked: FrontSettings):
        self._memory = asked.memory
        self._fast, self._slow = asyncio.Semaphore(asked.fast), asyncio.Semaphore(asked.slow)
        self._reading: set[asyncio.Future[bytes | None]] = set()
        """The next messages of streams."""
        self._tidy = False
        """Whether large messages were here since memory was last given back."""

    async def read(self, requests: AsyncIterator[bytes]) -> bytes:
        """Read one message once there is room for it; a slow one makes way for the next.

        Raises:
            RequestError: there is no room, or it does not arrive in time.
        """

        async def whole() -> bytes:
            return await anext(requests, b"")

        try:
            async with asyncio.timeout(READ_SECONDS):
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
                await asyncio.wait({reading}, timeout=READ_SECONDS)
            if not reading.done():
                raise TooSlow(
                    "message", found=f"not whole in {READ_SECONDS:.0f} s", expected="its end"
                )
            return reading.result()
        finally:
            reading.cancel()
            lane.release()

    async def next_of_stream(self, requests: AsyncIterator[bytes]) -> bytes | None:
        """Read the next message of a stream; ``None`` at its end.

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
        """End all streams that wait for a message when messages take too much memory, since it
        cannot be seen which of them are sending."""
        limit = _resident() + self._memory
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

    def tidy_soon(self) -> None:
        """Give memory back once a call with a large message has ended."""
        asyncio.get_running_loop().call_later(_TIDY_SECONDS, self._mark)

    def _mark(self) -> None:
        self._tidy = True


def _crowded(what: str) -> Crowded:
    return Crowded(what, found="as many as there is room for", expected="fewer",
                   fix="try again later")  # fmt: skip


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
