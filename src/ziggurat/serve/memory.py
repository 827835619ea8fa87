"""One budget for the bytes of all requests under way, however they came.

>>> memory = RequestMemory(largest=2**20, together=2**22)
>>> held = memory.open()
>>> held.add(80)
>>> memory.held
80
>>> held.close()
>>> memory.held
0
"""

import contextlib
import threading
from collections.abc import Iterator

from ziggurat.serve.errors import RequestError, TooLarge

SMALL = 2**16
"""Bytes of each request that come from a share of their own, so that large requests that fill the
budget do not shut out small ones."""


class Crowded(RequestError):
    """Error: the requests under way fill the server's memory budget."""

    status = 429
    kind = "rate_limit_error"
    code = "queue_full"
    retry_after = 1


class RequestMemory:
    """Memory budget of all requests under way; safe from any thread.

    Args:
        largest: bytes of one request, after decompression.
        together: bytes of all; a sixteenth of it is kept for the first 64 KiB of each.
    """

    def __init__(self, largest: int, together: int):
        self.largest, self._lock = largest, threading.Lock()
        self._limits = together - together // 16, together // 16
        self._held = [0, 0]

    @property
    def held(self) -> int:
        """Bytes reserved now."""
        return sum(self._held)

    def open(self) -> "Reservation":
        """Open one request's reservation; close it when the request has been answered."""
        return Reservation(self)

    def take(self, large: int, small: int) -> None:
        """Reserve bytes, of one request and of all.

        Raises:
            Crowded: there is no room.
        """
        with self._lock:
            for share, size in enumerate((large, small)):
                if size and self._held[share] + size > self._limits[share]:
                    raise Crowded(
                        "requests under way",
                        found=f"{self.held} bytes",
                        expected=f"at most {sum(self._limits)}",
                        fix="try again later",
                    )
            self._held[0] += large
            self._held[1] += small

    def give(self, large: int, small: int) -> None:
        """Release reserved bytes."""
        with self._lock:
            self._held[0] -= large
            self._held[1] -= small


class Reservation:
    """Bytes that one request has reserved in a :class:`RequestMemory`."""

    def __init__(self, memory: RequestMemory):
        self._memory, self._large, self._small = memory, 0, 0

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._large + self._small

    def add(self, size: int, body: bool = True) -> None:
        """Reserve more bytes.

        Args:
            size: how many.
            body: whether they are of the body, which may hold ``largest`` in all.

        Raises:
            TooLarge: the body is larger than one may be.
            Crowded: the requests under way fill the budget.
        """
        if body and self.size + size > self._memory.largest:
            raise TooLarge(
                "request body",
                found=f"{self.size + size} bytes or more",
                expected=f"at most {self._memory.largest}",
            )
        small = max(0, min(size, SMALL - self._small))
        self._memory.take(size - small, small)
        self._large += size - small
        self._small += small

    @contextlib.contextmanager
    def more(self, size: int) -> Iterator[None]:
        """Reserve so many more bytes within the context.

        Raises:
            Crowded: there is no room.
        """
        self._memory.take(size, 0)
        try:
            yield
        finally:
            self._memory.give(size, 0)

    def close(self) -> None:
        """Release all bytes."""
        large, small = self._large, self._small
        self._large = self._small = 0
        self._memory.give(large, small)
