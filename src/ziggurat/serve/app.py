"""The HTTP application, composed of parts: each brings its routes, models and health.

>>> from prometheus_client import CollectorRegistry
>>> app = build_app([ServicePart(cards=[{"id": "tiny"}])], CollectorRegistry())
>>> [route.path for route in app.routes][:2]
['/v1/models', '/v1/models/{name:path}']
"""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ziggurat import __version__
from ziggurat.core.json_types import JsonMapping
from ziggurat.serve.access import AccessLog, RequireKey
from ziggurat.serve.errors import UnknownModel
from ziggurat.serve.http import describe_for, guarded, json_response
from ziggurat.serve.patience import BodyInTime

Running = Callable[[], contextlib.AbstractAsyncContextManager[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServicePart:
    """Routes, model cards and health of one service, for :func:`build_app`."""

    routes: Sequence[BaseRoute] = ()
    cards: Sequence[JsonMapping] = ()
    """Entries of ``/v1/models``; each has an ``id``."""
    failure: Callable[[], object | None] = lambda: None
    """Reason that the server cannot serve any more; then ``/health`` and ``/ready`` answer 503."""
    ready: Callable[[], bool] = lambda: True
    """Whether it can serve now."""
    running: Running | None = None
    """Entered on the server's loop before the first request, left after the last one."""


def build_app(
    parts: Sequence[ServicePart],
    registry: CollectorRegistry,
    *,
    draining: Callable[[], bool] = lambda: False,
    keys: Sequence[str] = (),
    admin_keys: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    access_log: Callable[[str], None] | None = None,
) -> Starlette:
    """Build one application of all parts, with models, health, version and metrics.

    Args:
        parts: what is served.
        registry: what ``/metrics`` exports; the parts register their series with it.
        draining: whether the server is about to end; ``/ready`` then says no.
        keys: with any, requests need one of them as bearer token, but for health and metrics.
        admin_keys: with any, loading and unloading of models need one of them.
        allowed_origins: pages of which origins browsers let ask (CORS); ``*``: of any.
        access_log: gets one line of JSON for each request.
    """
    status = _Status(parts, registry, draining)
    get = {
        "/v1/models": status.models,
        "/v1/models/{name:path}": status.model,
        "/health": status.health,
        "/ready": status.ready,
        "/version": status.version,
        "/metrics": status.metrics,
    }
    routes: list[BaseRoute] = [Route(p, guarded(f), methods=["GET"]) for p, f in get.items()]
    routes += [route for part in parts for route in part.routes]

    async def refuse(request: Request, error: Exception) -> Response:
        code, body = describe_for(request.url.path, error)
        return json_response(body, code)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for part in parts:
                if part.running is not None:
                    await stack.enter_async_context(part.running())
            yield

    return Starlette(
        routes=routes,
        middleware=_middleware(keys, admin_keys, allowed_origins, access_log),
        exception_handlers={HTTPException: refuse},
        lifespan=lifespan,
    )


def _middleware(
    keys: Sequence[str],
    admin_keys: Sequence[str],
    allowed_origins: Sequence[str],
    access_log: Callable[[str], None] | None,
) -> list[Middleware]:
    """Middleware of the application, outermost first."""
    middleware = [Middleware(AccessLog, write=access_log)] if access_log else []
    middleware.append(Middleware(BodyInTime))
    if allowed_origins:  # before the key: a browser asks whether it may send one
        origins, anything = list(allowed_origins), ["*"]
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=anything,
                allow_headers=anything,
            )
        )
    if keys or admin_keys:
        middleware.append(Middleware(RequireKey, keys=keys, admin_keys=admin_keys))
    return middleware


class _Status:
    """The endpoints that speak of all parts."""

    def __init__(
        self,
        parts: Sequence[ServicePart],
        registry: CollectorRegistry,
        draining: Callable[[], bool],
    ):
        self._parts, self._registry, self._draining = parts, registry, draining
        self._cards = {card["id"]: card for part in parts for card in part.cards}

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": list(self._cards.values())})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._cards:
            raise UnknownModel.of(name, self._cards)
        return json_response(self._cards[name])

    async def health(self, request: Request) -> Response:
        failure = self._failure()
        if failure is not None:
            return json_response({"status": "failed", "reason": str(failure)}, 503)
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        fit = self._failure() is None and all(part.ready() for part in self._parts)
        ready = fit and not self._draining()
        return json_response({"ready": ready}, 200 if ready else 503)

    async def version(self, request: Request) -> Response:
        return json_response({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        text = generate_latest(self._registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    def _failure(self) -> object | None:
        failures = (part.failure() for part in self._parts)
        return next((failure for failure in failures if failure is not None), None)
