"""Messages between the server and its gRPC front, over a pair of Unix sockets.

A message has a number, a code and content. Small content goes through the socket; large content is
a :class:`~ziggurat.serve.predict.memory_file.MemoryFile` whose descriptor goes with the message.
Everything here runs on the event loop of the process; only files are written in a thread.
"""

import asyncio
import collections
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ziggurat.serve.predict.memory_file import MemoryFile

INLINE = 2**16
"""Largest content that goes through the socket (bytes)."""
_HEADER = struct.Struct("<QQHB")
"""Number of the message, size of its content, its code, and whether the content is a file."""
_READ = 2**18


class Message(NamedTuple):
    """Message between the server process and its gRPC process."""

    number: int
    code: int
    content: bytes | MemoryFile


class Link:
    """One end of the socket pair between two processes; made on the event loop that it is used on.

    Args:
        end: the socket.
        arrived: called with each message.
        ended: called once when the other end has gone.
    """

    def __init__(
        self, end: socket.socket, arrived: Callable[[Message], None], ended: Callable[[], None]
    ):
        self._socket, self._arrived, self._ended = end, arrived, ended
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._files: collections.deque[int] = collections.deque()
        self._turn = asyncio.Lock()
        end.setblocking(False)
        self._loop.add_reader(end.fileno(), self._readable)

    def close(self) -> None:
        """Leave the loop and close the socket."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        while self._files:
            os.close(self._files.popleft())

    async def send(self, number: int, code: int, parts: Sequence[Any]) -> None:
        """Send a message of these buffers, one after the other.

        Raises:
            OSError: the other end has gone.
        """
        size = sum(memoryview(part).nbytes for part in parts)
        data = b""
        if size <= INLINE:
            data = b"".join((_HEADER.pack(number, size, code, 0), *parts))
            if not self._turn.locked():
                with contextlib.suppress(BlockingIOError):
                    data = data[self._socket.send(data) :]
                if not data:
                    return
        # Whoever sends may be cancelled; half a message would spoil all that follow.
        file = None if data else await asyncio.to_thread(MemoryFile.of, parts)
        data = data or _HEADER.pack(number, size, code, 1)
        await asyncio.shield(self._loop.create_task(self._put(data, file)))

    async def _put(self, data: bytes, file: MemoryFile | None) -> None:
        view, descriptors = memoryview(data), [] if file is None else [file.descriptor]
        async with self._turn:
            while len(view):
                try:
                    sent = socket.send_fds(self._socket, [view], descriptors)
                except BlockingIOError:
                    await self._writable()
                    continue
                view, descriptors = view[sent:], []
        if file is not None:
            file.close()

    async def _writable(self) -> None:
        ready, number = self._loop.create_future(), self._socket.fileno()
        self._loop.add_writer(number, lambda: ready.done() or ready.set_result(None))
        try:
            await ready
        finally:
            self._loop.remove_writer(number)

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _READ, 64)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._files.extend(descriptors)
        if not data:
            self.close()
            self._ended()
            return
        self._buffer += data
        self._take()

    def _take(self) -> None:
        """Tell of the messages that are whole."""
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            number, size, code, filed = _HEADER.unpack_from(self._buffer, at)
            begin = at + _HEADER.size
            end = begin if filed else begin + size
            if end > len(self._buffer):
                break
            # A descriptor comes with the first byte of its message, so they are in order.
            content = bytes(self._buffer[begin:end])
            file = MemoryFile(self._files.popleft(), size) if filed else None
            at = end
            self._arrived(Message(number, code, content if file is None else file))
        del self._buffer[:at]


@contextlib.contextmanager
def pair():
    """Make two connected sockets: this process's, and a child's, which is closed at the end."""
    here, there = socket.socketpair()
    try:
        yield here, there
    except BaseException:
        here.close()
        raise
    finally:
        there.close()
