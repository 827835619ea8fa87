"""Accepting connections: those whose client has gone already cost a few system calls and no more.

A client that opens and closes thousands of connections fills the kernel's queue, and whoever comes
next waits until all before it have been taken. With a transport and a protocol for each of them a
server takes about four thousand a second; here it looks at the state of a connection first and
closes those that nobody waits at, a hundred thousand a second. It looks twice, when it accepts and
a round of the loop later: most of those that ask and leave have left by then. The system calls keep
the interpreter's lock, because a thread that computes would have it for 0.2 ms after each of them.
"""

import asyncio
import ctypes
import errno
import os
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any

ROUND = 64
"""Connections that are handed to the event loop in a round of it."""
_LOOKED_AT = 1024
"""Connections that are looked at in a round."""
_PAUSE_SECONDS = 1.0
"""How long nothing is accepted after the process has run out of file descriptors."""
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TCP_INFO = getattr(socket, "TCP_INFO", None)
_CLOSE_WAIT = 8
"""State of a connection whose other end sends no more (linux/tcp_states.h)."""

Protocols = Callable[[], asyncio.Protocol]


class Acceptor:
    """Takes the connections of a listening socket, from :meth:`start` to :meth:`close`.

    It has the methods of :class:`asyncio.Server` that uvicorn calls.

    Args:
        listening: a bound socket; closed with the acceptor.
        protocols: makes the protocol of a connection.
        tls: certificate and key; without, connections speak plain text.
    """

    def __init__(
        self, listening: socket.socket, protocols: Protocols, tls: ssl.SSLContext | None = None
    ):
        self._listening, self._protocols, self._tls = listening, protocols, tls
        self._accept, self._drop = _native(listening) or (_accept, socket.socket.close)
        self._accepted: list[socket.socket] = []
        self._adopting: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None

    def start(self, backlog: int) -> None:
        """Begin, on the running loop.

        Args:
            backlog: connections that may wait in the kernel.
        """
        self._listening.setblocking(False)
        self._listening.listen(backlog)
        self._loop = asyncio.get_running_loop()
        self._watch()

    def close(self) -> None:
        """Accept no more connections; those that are open stay."""
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._listening.fileno())
        self._listening.close()
        self._hand_over()

    async def wait_closed(self) -> None:
        """End connections that have no protocol yet: a client that never ends its TLS handshake
        does not hold up the server's end."""
        for task in self._adopting:
            task.cancel()
        await asyncio.gather(*self._adopting, return_exceptions=True)

    def _watch(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listening.fileno(), self._take)

    def _take(self) -> None:
        """Take what is there, at most a round's worth; the loop calls again for the rest."""
        if not self._accepted:
            self._loop.call_soon(self._hand_over)
        for _ in range(_LOOKED_AT):
            try:
                end = self._accept(self._listening)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._pause()
                    return
                continue  # the client was gone before it was accepted
            if end is not None:
                self._accepted.append(end)
                if len(self._accepted) >= ROUND:
                    return

    def _pause(self) -> None:
        self._loop.remove_reader(self._listening.fileno())
        self._paused = self._loop.call_later(_PAUSE_SECONDS, self._watch)

    def _hand_over(self) -> None:
        """Give the connections accepted in this round their protocols."""
        accepted, self._accepted = self._accepted, []
        for end in accepted:
            if closed_by_client(end):
                self._drop(end)
                continue
            task = self._loop.create_task(self._adopt(end))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    async def _adopt(self, end: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocols, end, ssl=self._tls)
        except (OSError, asyncio.CancelledError):  # it left, or its handshake failed
            end.close()


def _accept(listening: socket.socket) -> socket.socket | None:
    """Next connection; ``None`` for one that its client has closed, which is closed here too.

    Raises:
        OSError: as ``accept`` does.
    """
    end, _ = listening.accept()
    if closed_by_client(end):
        end.close()
        return None
    return end


def closed_by_client(end: Any) -> bool:
    """Whether nobody waits for an answer: the client has closed the connection, if only for
    sending, and uvicorn gives no answer then either.

    Args:
        end: a socket, or what a transport says is its socket; ``None`` if it has none.

    Returns:
        ``False`` where the system does not tell.
    """
    if _TCP_INFO is None or end is None or end.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        return end.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] == _CLOSE_WAIT
    except OSError:
        return True


Accept = Callable[[socket.socket], socket.socket | None]
Drop = Callable[[socket.socket], None]


def _native(listening: socket.socket) -> tuple[Accept, Drop] | None:
    """:func:`_accept`, and the closing of a connection, that keep the interpreter's lock; ``None``
    where the system lacks them."""
    internet = listening.family in (socket.AF_INET, socket.AF_INET6)
    if sys.platform != "linux" or _TCP_INFO is None or not internet:
        return None
    library = ctypes.PyDLL(None, use_errno=True)  # unlike CDLL it keeps the lock
    accept4, getsockopt, close = library.accept4, library.getsockopt, library.close
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    family, kind, protocol, tcp_info = listening.family, listening.type, listening.proto, _TCP_INFO
    state, length = ctypes.c_ubyte(), ctypes.c_uint32()
    state_at, length_at = ctypes.byref(state), ctypes.byref(length)

    def accept(listening: socket.socket) -> socket.socket | None:
        number = accept4(listening.fileno(), None, None, flags)
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        length.value = 1
        getsockopt(number, socket.IPPROTO_TCP, tcp_info, state_at, length_at)
        if state.value == _CLOSE_WAIT:
            close(number)
            return None
        return socket.socket(family, kind, protocol, fileno=number)

    return accept, lambda end: close(end.detach())
