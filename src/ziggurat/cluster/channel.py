"""Messages between the controller and its hosts: pickled objects over TCP, after a shared secret.

Whoever connects must answer a challenge before a byte of a pickle is read, and gets the answer to
one of its own: each side proves by HMAC-SHA256 over the other's random number that it knows the
secret. What follows is neither signed nor encrypted, as traffic between JAX processes is not: the
address to listen on is loopback unless told otherwise, else of a network of the hosts' own.

>>> def serve(channel):
...     channel.send(channel.receive() + 1)
>>> with Listener("127.0.0.1", b"secret", serve) as on:
...     with connect(on.address, b"secret") as channel:
...         channel.send(41)
...         channel.receive()
42
"""

import contextlib
import hmac
import pickle
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from ziggurat.core.errors import ClusterError

CONNECT_S = 30.0
"""How long a connection may take to come about and to prove itself."""
_NONCE = 32
_HEAD = struct.Struct(">Q")
_HELLO = b"ziggurat-cluster-1"


class ChannelClosed(ConnectionError):
    """Error: the process at the other end has closed the connection or ended."""


class Channel:
    """Authenticated connection between the controller and a host. Any thread may send, one may
    receive."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._sending = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: Any) -> None:
        """Send one object.

        Raises:
            Closed: nobody is there any more.
        """
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        try:
            with self._sending:
                self._connection.sendall(_HEAD.pack(len(content)))
                self._connection.sendall(content)
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self) -> Any:
        """Wait for the next object and return it.

        Raises:
            Closed: nobody is there any more.
        """
        (size,) = _HEAD.unpack(_exactly(self._connection, _HEAD.size))
        return pickle.loads(_exactly(self._connection, size))

    def close(self) -> None:
        """Close the connection; a thread that waits in :meth:`receive` at either end gets
        :class:`ChannelClosed`."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Listener:
    """Server socket that accepts channels and serves each in a thread of its own.

    Args:
        host: address of this machine to listen on.
        secret: what both ends must know.
        serve: called with each proven channel, which is closed on return.
        port: to listen on; 0 takes a free one.

    Raises:
        ClusterError: the address is not of this machine, or the port is taken.
    """

    def __init__(self, host: str, secret: bytes, serve: Callable[[Channel], None], port: int = 0):
        self._secret, self._serve = secret, serve
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise ClusterError(
                f"listening on {host}:{port}",
                found=error.strerror or error,
                expected="an address of this machine and a free port",
                fix="give --bind an address of this machine",
            ) from error
        self.address = (host, self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="listener", daemon=True).start()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Accept no more connections; open ones stay open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            connection.settimeout(CONNECT_S)
            if _exactly(connection, len(_HELLO)) == _HELLO and _prove(
                connection, self._secret, b"listener", b"caller"
            ):
                with Channel(connection) as channel:
                    self._serve(channel)


def connect(address: tuple[str, int], secret: bytes) -> Channel:
    """A channel to a :class:`Listener`.

    Raises:
        ClusterError: nobody listens there, or somebody with another secret.
    """
    try:
        connection = socket.create_connection(address, CONNECT_S)
    except OSError as error:
        raise ClusterError(
            f"connecting to {address[0]}:{address[1]}",
            found=error.strerror or error,
            expected="the controller of the cluster",
            fix="see that it runs and that no firewall closes the port",
        ) from error
    try:
        connection.sendall(_HELLO)
        proven = _prove(connection, secret, b"caller", b"listener")
    except OSError:
        proven = False
    if not proven:
        connection.close()
        raise ClusterError(
            f"connecting to {address[0]}:{address[1]}",
            found="somebody who does not know the secret",
            expected="the controller of this cluster",
        )
    return Channel(connection)


def _prove(connection: socket.socket, secret: bytes, own: bytes, other: bytes) -> bool:
    """Exchange random numbers, then proofs over both of them; whether the other's is right."""
    mine = secrets.token_bytes(_NONCE)
    connection.sendall(mine)
    theirs = _exactly(connection, _NONCE)
    numbers = mine + theirs if own == b"listener" else theirs + mine
    if own == b"caller":  # a listener shows nothing to who has not proven himself
        connection.sendall(hmac.digest(secret, own + numbers, "sha256"))
    proof = _exactly(connection, 32)
    right = hmac.compare_digest(proof, hmac.digest(secret, other + numbers, "sha256"))
    if own == b"listener" and right:
        connection.sendall(hmac.digest(secret, own + numbers, "sha256"))
    return right


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = bytearray(size)
    view, filled = memoryview(content), 0
    while filled < size:
        try:
            came = connection.recv_into(view[filled:])
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not came:
            raise ChannelClosed("the other end closed the connection")
        filled += came
    return bytes(content)
