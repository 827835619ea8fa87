"""The process around the application: a socket bound early, and an orderly end on SIGTERM."""

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.config import STARTUP_FAILURE

from ziggurat.core.errors import ServeError
from ziggurat.serve import turns
from ziggurat.serve.accepting import Acceptor
from ziggurat.serve.app import ServicePart, build_app
from ziggurat.serve.patience import HeadersInTime
from ziggurat.serve.tls import Tls

BACKLOG = 511
"""Connections that may wait to be taken, as in nginx; the operating system lets the others try
again after a second. Behind uvicorn's 2,048, each with a request to read, a probe would wait for a
second."""


def bind(host: str, port: int) -> socket.socket:
    """Bind the port before a model is loaded; connections are refused until the server runs.

    Args:
        host: name or address of an interface of this machine.
        port: 0 takes a free one.

    Raises:
        ServeError: the port is in use or may not be taken, or there is no such host.
    """
    if not 0 <= port < 2**16:
        raise ServeError("port", found=port, expected="a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(
            f"address {host}:{port}", found=reason, expected="a free port", fix="try another --port"
        ) from None
    return taken


class Server(uvicorn.Server):
    """HTTP server of an application on a bound socket, until SIGTERM or SIGINT.

    After the signal no connection is accepted, requests under way are finished, at most for
    ``drain_seconds``, the parts are left and :meth:`run` returns. A second SIGINT does not wait.

    Args:
        parts: what is served; whoever made an engine closes it.
        listening: from :func:`bind`.
        registry: the parts' metrics; default an empty one.
        drain_seconds: how long requests may take to finish.
        keys: as in :func:`~ziggurat.serve.app.build_app`.
        admin_keys: as there.
        allowed_origins: as there.
        access_log: as there.
        tls: certificate and key; without, it speaks plain text.

    Raises:
        ServeError: the certificate or the key cannot be used.
    """

    def __init__(
        self,
        parts: Sequence[ServicePart],
        listening: socket.socket,
        registry: CollectorRegistry | None = None,
        *,
        drain_seconds: int = 60,
        keys: Sequence[str] = (),
        admin_keys: Sequence[str] = (),
        allowed_origins: Sequence[str] = (),
        access_log: Callable[[str], None] | None = None,
        tls: Tls | None = None,
    ):
        app = build_app(
            parts,
            registry or CollectorRegistry(),
            draining=lambda: self.should_exit,
            keys=keys,
            admin_keys=admin_keys,
            allowed_origins=allowed_origins,
            access_log=access_log,
        )
        if tls is not None:
            tls.read()
        self._scheme = "http" if tls is None else "https"
        options = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            ws="none",
            http=HeadersInTime,
            backlog=BACKLOG,
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else str(tls.key),
            timeout_graceful_shutdown=drain_seconds,
        )
        super().__init__(options)
        self._listening = listening

    @property
    def url(self) -> str:
        """URL of the server."""
        host, port = self._listening.getsockname()[:2]
        inner = f"[{host}]" if ":" in host else host
        return f"{self._scheme}://{inner}:{port}"

    def serve_forever(self) -> None:
        """Run until a signal or :meth:`stop`."""
        with turns.quick():
            self.run(sockets=[])  # :meth:`startup` listens itself

    def stop(self) -> None:
        """Request an orderly end, from any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, but with an :class:`Acceptor` for its servers; then exclude the
        objects made so far from garbage collection."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        acceptor = Acceptor(self._listening, self._protocol, self.config.ssl)
        acceptor.start(self.config.backlog)
        self.servers = [acceptor]  # type: ignore[assignment]  # it has what uvicorn calls
        turns.freeze()
        self.started = True  # last: threads wait for it, and then connect

    def _protocol(self) -> asyncio.Protocol:
        """Protocol of a new connection, as uvicorn makes it."""
        options = self.config, self.server_state, self.lifespan.state
        return HeadersInTime(*options)  # type: ignore[call-arg]  # its base is chosen at import

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM as uvicorn does, without raising the signal again afterwards:
        an orderly end exits with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
