"""The predict side of a server: its HTTP routes, its metrics, its gRPC port, its start and end."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client import CollectorRegistry
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Send

from ziggurat import __version__
from ziggurat.core.errors import ZigguratError
from ziggurat.serve.app import ServicePart
from ziggurat.serve.errors import RequestError
from ziggurat.serve.http import GONE, ClientGone
from ziggurat.serve.predict import http, model_card
from ziggurat.serve.predict.batching import Scheduler
from ziggurat.serve.predict.body import decode_json, inflate
from ziggurat.serve.predict.config import PredictConfig
from ziggurat.serve.predict.decoder import Decoder
from ziggurat.serve.predict.memory import Memory
from ziggurat.serve.predict.repository import Repository, Version, refuse_load_parameters
from ziggurat.serve.predict.statistics import Exposed, Statistics
from ziggurat.serve.tls import Tls

if TYPE_CHECKING:
    from ziggurat.serve.predict.grpc_service import GrpcServer

_log = logging.getLogger(__name__)
NAME = "ziggurat"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
)
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_SMALL = 2**16
"""Largest body of a request that is not an inference (bytes)."""


class ControlRefused(RequestError):
    """Loading and unloading are off."""

    fix = "start the server with --model-control explicit"


class Predict:
    """A repository behind KServe v2; close it, or use it in a ``with`` block.

    Args:
        path: the repository's directory.
        settings: the server's.
        draining: whether the server is about to end; readiness then says no.

    Raises:
        ServeError: there is no such directory, or a model that the settings name is not there.
    """

    def __init__(
        self,
        path: Path,
        settings: PredictConfig | None = None,
        draining: Callable[[], bool] = lambda: False,
    ):
        self.settings = settings or PredictConfig()
        self.draining = draining
        self.grpc: GrpcServer | None = None
        """The gRPC server while it runs; tells its port."""
        self.started: Callable[[int], None] = lambda port: None
        """Called with the gRPC port when it listens."""
        self.scheduler = Scheduler(self.settings.devices)
        most = self.settings.memory
        self.decoder = Decoder(self.settings.max_body, most)
        self.memory = Memory(self.settings.max_body, most - self.decoder.bytes)
        """The bytes of all requests under way."""
        try:
            self.repository = Repository(path, self.scheduler, self.settings)
            self.failed = self.repository.load_all()
            """Models that could not be loaded at start, with the reasons."""
        except BaseException:
            self.scheduler.close()
            self.decoder.close()
            raise

    def __enter__(self) -> "Predict":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; waiting requests are refused."""
        self.repository.close()
        self.scheduler.close()
        self.decoder.close()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self.draining()

    def register(self, registry: CollectorRegistry) -> None:
        """Show the counters in a server's Prometheus registry."""
        registry.register(Exposed(self._counters))

    def routes(self) -> list[BaseRoute]:
        """Routes below ``/v2`` for the server's application."""
        model = "/v2/models/{model}"
        infer = http.Infer(self.repository, self.memory, self.decoder, self._fail)
        post = {
            "/v2/repository/index": self._index,
            "/v2/repository/models/{model}/load": self._load,
            "/v2/repository/models/{model}/unload": self._unload,
        }
        get = {
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/v2": self._server,
            "/v2/": self._server,
            "/v2/models/stats": self._statistics,
        }
        for prefix in (model, model + "/versions/{version}"):
            get |= {
                prefix + "/ready": self._model_ready,
                prefix + "/config": self._config,
                prefix + "/stats": self._statistics,
                prefix: self._metadata,
            }
        found: list[BaseRoute] = [
            Route(model + "/infer", infer, methods=["POST"]),
            Route(model + "/versions/{version}/infer", infer, methods=["POST"]),
        ]
        found += [Route(path, self._guarded(f), methods=["POST"]) for path, f in post.items()]
        found += [Route(path, self._guarded(f), methods=["GET"]) for path, f in get.items()]
        unknown = self._guarded(self._unknown)
        return [
            *found,
            *(Route(path, unknown, methods=_METHODS) for path in ("/v2", "/v2/{_:path}")),
        ]

    def part(
        self,
        grpc_address: str | None = None,
        keys: Sequence[str] = (),
        drain_seconds: int = 60,
        *,
        admin_keys: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> ServicePart:
        """What this adds to the server's application; arguments as of :meth:`running`."""

        def running() -> contextlib.AbstractAsyncContextManager[None]:
            return self.running(grpc_address, keys, drain_seconds, admin_keys=admin_keys, tls=tls)

        return ServicePart(routes=self.routes(), ready=lambda: self.ready, running=running)

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

    def server_metadata(self) -> dict[str, Any]:
        """What the server is."""
        return {"name": NAME, "version": __version__, "extensions": list(EXTENSIONS)}

    def statistics(self, name: str = "", number: str = "") -> list[dict[str, Any]]:
        """The statistics extension's entries.

        Raises:
            UnknownModel: a name or number is given and not served.
        """
        return [
            {"name": v.model, "version": str(v.number), **v.statistics.plain()}
            for v in self.repository.serving(name, number)
        ]

    async def load(self, name: str, parameters: dict[str, Any]) -> None:
        """Load or reload a model, off the event loop.

        Raises:
            ServeError: loading is off, or it fails; what served before still does.
        """
        self._check_control()
        refuse_load_parameters(parameters)
        await run_in_threadpool(self.repository.load, name, True)

    async def unload(self, name: str, parameters: dict[str, Any]) -> None:
        """Unload a model, off the event loop.

        Raises:
            ServeError: unloading is off, or the model is not served.
        """
        self._check_control()
        for key, value in parameters.items():
            if key != "unload_dependents" or type(value) is not bool:
                raise RequestError(
                    f"unload: parameter {key[:80]}",
                    found=repr(value)[:80],
                    expected="unload_dependents: true or false",
                    param=key[:80],
                )
        await run_in_threadpool(self.repository.unload, name)

    def _counters(self) -> Iterable[tuple[str, str, Statistics, int]]:
        for v in self.repository.serving():
            yield v.model, str(v.number), v.statistics, v.queue.waiting

    def _check_control(self) -> None:
        if self.settings.model_control != "explicit":
            raise ControlRefused(
                "loading and unloading", found="off", expected="on", fix=ControlRefused.fix
            )

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Any:
        async def call(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientGone:
                return Response(status_code=GONE)
            except Exception as error:
                status, text = describe(error)
                return _json({"error": text}, status)

        return call

    async def _fail(self, error: Exception, send: Send) -> None:
        status, text = describe(error)
        await http.send_body(send, msgspec.json.encode({"error": text}), status)

    def _version(self, request: Request) -> Version:
        where = request.path_params
        return self.repository.get(where["model"], where.get("version", ""))

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        return _json({"ready": self.ready}, 200 if self.ready else 503)

    async def _server(self, request: Request) -> Response:
        return _json(self.server_metadata())

    async def _metadata(self, request: Request) -> Response:
        version = self._version(request)
        served = self.repository.serving(version.model)
        return _json(model_card.metadata(version, [v.number for v in served]))

    async def _model_ready(self, request: Request) -> Response:
        version = self._version(request)
        return _json({"name": version.model, "ready": True})

    async def _config(self, request: Request) -> Response:
        return _json(model_card.configuration(self._version(request), self.settings.devices))

    async def _statistics(self, request: Request) -> Response:
        where = request.path_params
        found = self.statistics(where.get("model", ""), where.get("version", ""))
        return _json({"model_stats": found})

    async def _index(self, request: Request) -> Response:
        body = await self._body(request, http.IndexBody)
        return _json(
            [
                {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
                for e in self.repository.index(body.ready)
            ]
        )

    async def _load(self, request: Request) -> Response:
        body = await self._body(request, http.LoadBody)
        await self.load(request.path_params["model"], body.parameters)
        return Response(b"", 200)

    async def _unload(self, request: Request) -> Response:
        body = await self._body(request, http.LoadBody)
        await self.unload(request.path_params["model"], body.parameters)
        return Response(b"", 200)

    async def _unknown(self, request: Request) -> Response:
        raise HTTPException(404, f"no such endpoint: {request.method} {request.url.path[:200]}")

    async def _body(self, request: Request, kind: type[Any]) -> Any:
        held = Memory(_SMALL, 17 * _SMALL).open()
        body = await http.read_body(request.receive, held)
        encoding = http.header(request.scope, b"content-encoding").decode("latin-1")
        if encoding not in ("", "identity"):
            body = inflate(body, encoding, _SMALL)
        return decode_json(msgspec.json.Decoder(kind), body or b"{}", "body")


def describe(error: Exception) -> tuple[int, str]:
    """HTTP status and text of whatever a handler raised."""
    if isinstance(error, ZigguratError):
        return getattr(error, "status", 400), str(error).encode("utf-8", "replace").decode()
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    _log.error("request failed", exc_info=error)
    return 500, "the server failed; its log says why"


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
