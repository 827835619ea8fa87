"""The predict side of a server: its HTTP routes, its metrics, its gRPC port, its start and end."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute

from ziggurat.serve.app import ServicePart
from ziggurat.serve.predict.config import PredictConfig
from ziggurat.serve.predict.http_routes import Routes
from ziggurat.serve.predict.operations import Operations
from ziggurat.serve.predict.statistics import Exposed, Statistics
from ziggurat.serve.tls import Tls

if TYPE_CHECKING:
    from ziggurat.serve.predict.grpc_service import GrpcServer


class Predict(Operations):
    """KServe v2 service of a repository, over HTTP and gRPC; arguments as of
    :class:`~ziggurat.serve.predict.operations.Operations`."""

    def __init__(
        self,
        path: Path,
        settings: PredictConfig | None = None,
        draining: Callable[[], bool] = lambda: False,
    ):
        self.grpc: GrpcServer | None = None
        """The gRPC server while it runs; tells its port."""
        self.started: Callable[[int], None] = lambda port: None
        """Called with the gRPC port when it listens."""
        super().__init__(path, settings, draining)

    def register(self, registry: CollectorRegistry) -> None:
        """Export the statistics to a server's Prometheus registry."""
        registry.register(Exposed(self._counters))

    def routes(self) -> list[BaseRoute]:
        """Routes below ``/v2`` for the server's application."""
        return Routes(self).made()

    def part(
        self,
        grpc_address: str | None = None,
        keys: Sequence[str] = (),
        drain_seconds: int = 60,
        *,
        admin_keys: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> ServicePart:
        """Routes and health of the service; arguments as of :meth:`running`."""

        def running() -> contextlib.AbstractAsyncContextManager[None]:
            return self.running(grpc_address, keys, drain_seconds, admin_keys=admin_keys, tls=tls)

        return ServicePart(
            routes=self.routes(),
            failure=lambda: self.grpc and self.grpc.failure,
            ready=lambda: self.ready,
            running=running,
        )

    @contextlib.asynccontextmanager
    async def running(
        self,
        grpc_address: str | None = None,
        keys: Sequence[str] = (),
        drain_seconds: int = 60,
        *,
        admin_keys: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> AsyncIterator[None]:
        """Within it the models are served on this event loop; HTTP by whoever mounts the routes,
        gRPC here. At its end calls under way are finished.

        Args:
            grpc_address: ``HOST:PORT`` of the gRPC server; none by default.
            keys: with any, calls need one of them as ``authorization: Bearer KEY``.
            drain_seconds: how long calls may take to finish.
            admin_keys: with any, loading and unloading need one of them; they open the rest too.
            tls: certificate and key of the gRPC port; without, it speaks plain text.

        Raises:
            ServeError: the gRPC port is in use.
        """
        if grpc_address is None:
            yield
            return
        from ziggurat.serve.predict.grpc_service import GrpcServer

        self.grpc = GrpcServer(self, grpc_address, keys, admin_keys=admin_keys, tls=tls)
        await self.grpc.start()
        self.started(self.grpc.port)
        try:
            yield
        finally:
            await self.grpc.stop(drain_seconds)

    def _counters(self) -> Iterable[tuple[str, str, Statistics, int]]:
        for v in self.repository.serving():
            yield v.model, str(v.number), v.statistics, v.queue.waiting
