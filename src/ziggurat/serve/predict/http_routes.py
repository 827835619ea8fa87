"""KServe v2's endpoints over HTTP."""

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ziggurat.core.json_types import JsonObject
from ziggurat.serve.http import Handler, guarded, json_response, read_body
from ziggurat.serve.predict import http, model_card
from ziggurat.serve.predict.body import decode_json, inflate
from ziggurat.serve.predict.operations import Operations, describe
from ziggurat.serve.predict.repository import Version

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_SMALL = 2**16
"""Largest body of a request that is not an inference (bytes)."""


class LoadBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a load or unload."""

    parameters: JsonObject = {}


class IndexBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of an index request."""

    ready: bool = False


class Routes:
    """The endpoints of a repository, for the server's application."""

    def __init__(self, operations: Operations):
        self._operations = operations

    def made(self) -> list[BaseRoute]:
        """Routes below ``/v2``."""
        model = "/v2/models/{model}"
        own = self._operations
        infer = http.Infer(own.repository, own.memory, own.decoder, error_body)
        post: dict[str, Handler] = {
            "/v2/repository/index": self._index,
            "/v2/repository/models/{model}/load": self._load,
            "/v2/repository/models/{model}/unload": self._unload,
        }
        get: dict[str, Handler] = {
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
        for method, handlers in (("POST", post), ("GET", get)):
            for path, handler in handlers.items():
                found.append(Route(path, guarded(handler, error_body), methods=[method]))
        unknown = guarded(self._unknown, error_body)
        return [
            *found,
            *(Route(path, unknown, methods=_METHODS) for path in ("/v2", "/v2/{_:path}")),
        ]

    def _version(self, request: Request) -> Version:
        where = request.path_params
        return self._operations.repository.get(where["model"], where.get("version", ""))

    async def _live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        ready = self._operations.ready
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _server(self, request: Request) -> Response:
        return json_response(self._operations.server_metadata())

    async def _metadata(self, request: Request) -> Response:
        version = self._version(request)
        served = self._operations.repository.serving(version.model)
        return json_response(model_card.metadata(version, [v.number for v in served]))

    async def _model_ready(self, request: Request) -> Response:
        version = self._version(request)
        return json_response({"name": version.model, "ready": True})

    async def _config(self, request: Request) -> Response:
        devices = self._operations.settings.devices
        return json_response(model_card.configuration(self._version(request), devices))

    async def _statistics(self, request: Request) -> Response:
        where = request.path_params
        found = self._operations.statistics(where.get("model", ""), where.get("version", ""))
        return json_response({"model_stats": found})

    async def _index(self, request: Request) -> Response:
        body = await _small_body(request, IndexBody)
        return json_response(self._operations.index(body.ready))

    async def _load(self, request: Request) -> Response:
        body = await _small_body(request, LoadBody)
        await self._operations.load(request.path_params["model"], body.parameters)
        return Response(b"", 200)

    async def _unload(self, request: Request) -> Response:
        body = await _small_body(request, LoadBody)
        await self._operations.unload(request.path_params["model"], body.parameters)
        return Response(b"", 200)

    async def _unknown(self, request: Request) -> Response:
        raise HTTPException(404, f"no such endpoint: {request.method} {request.url.path[:200]}")


def error_body(error: Exception) -> tuple[int, dict[str, str]]:
    """Status and body of an error, in KServe's form."""
    status, text = describe(error)
    return status, {"error": text}


async def _small_body(request: Request, kind: type[Any]) -> Any:
    body = await read_body(request, _SMALL)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding not in ("", "identity"):
        body = inflate(body, encoding, _SMALL)
    return decode_json(msgspec.json.Decoder(kind), body or b"{}", "body")
