"""KServe v2 over gRPC, on the event loop of the HTTP server.

Messages are parsed here rather than by the library, so that a broken one is INVALID_ARGUMENT and
not an internal error.
"""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer as _HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2
from jaxtyping import Shaped

from ziggurat.core.errors import ServeError
from ziggurat.serve.errors import RequestError
from ziggurat.serve.predict import infer, model_card, tensors
from ziggurat.serve.predict.infer import Asked
from ziggurat.serve.predict.messages import MESSAGES, METHODS, POOL, SERVICE
from ziggurat.serve.predict.repository import Version
from ziggurat.serve.predict.service import Predict, describe
from ziggurat.serve.predict.signature import Tensor

_Infer, _Answer = MESSAGES["ModelInferRequest"], MESSAGES["ModelInferResponse"]
_Streamed = MESSAGES["ModelStreamInferResponse"]
_OVERHEAD = 2**16
"""What a message may hold beside tensor bytes (bytes)."""
_CALLS = 1024
"""Calls under way at once; more wait in the transport's queue or are refused."""

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""HTTP status of an error -> status of the call."""


class NoKey(RequestError):
    """The call bears no key that is known."""

    status = 401


class GrpcServer:
    """A :class:`Predict` on a gRPC port, with the health and reflection services.

    Args:
        predict: what it serves.
        address: ``HOST:PORT``; port 0 takes a free one.
        keys: with any, calls need one of them as ``authorization: Bearer KEY``; the health and
            reflection services do not.
    """

    def __init__(self, predict: Predict, address: str, keys: Sequence[str] = ()):
        self._predict, self._address = predict, address
        self._keys = [f"bearer {key}".encode() for key in keys]
        self._server: aio.Server | None = None
        self.port = 0
        """The port it listens on, once started."""

    async def start(self) -> None:
        """Listen; the event loop is the one that runs this.

        Raises:
            ServeError: the port is in use.
        """
        limit = self._predict.settings.max_body + _OVERHEAD
        self._health = _HealthServicer()
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=_CALLS,
        )
        handlers = grpc.method_handlers_generic_handler(SERVICE, self._handlers())
        self._server.add_generic_rpc_handlers((handlers,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, pool=_reflected())
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError:
            raise ServeError(
                f"gRPC address {self._address}",
                found="it cannot be bound",
                expected="a free port",
                fix="try another --grpc-port",
            ) from None
        await self._server.start()
        serving = health_pb2.HealthCheckResponse.ServingStatus.SERVING
        for name in ("", SERVICE):
            await self._health.set(name, serving)

    async def stop(self, seconds: int) -> None:
        """Take no more calls and give those under way time to end."""
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(seconds)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        calls: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        found = {
            name: grpc.unary_unary_rpc_method_handler(
                self._unary(call, MESSAGES[METHODS[name].request])
            )
            for name, call in calls.items()
        }
        found["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return found

    def _unary(self, call: Callable[[Any], Awaitable[Any]], kind: Any) -> Any:
        async def answer(data: bytes, context: Any) -> bytes:
            try:
                self._check_key(context)
                return (await call(_parse(kind, data))).SerializeToString()
            except Exception as error:
                status, text = describe(error)
                await context.abort(CODES.get(status, grpc.StatusCode.INTERNAL), text)
                raise  # abort does not return

        return answer

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """One answer for each request, in order; an error is an answer too and ends nothing."""
        async for data in requests:
            try:
                self._check_key(context)
                answer = _Streamed(infer_response=await self._infer(_parse(_Infer, data)))
            except Exception as error:
                answer = _Streamed(error_message=describe(error)[1])
            yield answer.SerializeToString()

    def _check_key(self, context: Any) -> None:
        if not self._keys:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        scheme, _, token = str(given).partition(" ")
        text = f"{scheme.lower()} {token.strip()}".encode()
        # All are compared, each in constant time: timing tells nothing about them.
        if not any(hmac.compare_digest(text, key) for key in self._keys):
            raise NoKey(
                "API key", found="none that is known", expected="metadata authorization: Bearer KEY"
            )

    async def _infer(self, request: Any) -> Any:
        held = sum(map(len, request.raw_input_contents))
        self._predict.bodies.hold(held)
        try:
            version = self._predict.repository.get(request.model_name, request.model_version)
            with infer.counting(version):
                asked = read_infer(request, version)
            outputs = await asked.run()
        finally:
            self._predict.bodies.release(held)
        return write_infer(asked.version, request.id, outputs)

    async def _live(self, request: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ready(self, request: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._predict.ready)

    async def _model_ready(self, request: Any) -> Any:
        try:
            self._predict.repository.get(request.name, request.version)
        except RequestError:
            return MESSAGES["ModelReadyResponse"](ready=False)
        return MESSAGES["ModelReadyResponse"](ready=True)

    async def _server_metadata(self, request: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](**self._predict.server_metadata())

    async def _metadata(self, request: Any) -> Any:
        version = self._predict.repository.get(request.name, request.version)
        served = [v.number for v in self._predict.repository.serving(version.model)]
        return MESSAGES["ModelMetadataResponse"](**model_card.metadata(version, served))

    async def _config(self, request: Any) -> Any:
        version = self._predict.repository.get(request.name, request.version)
        plain = model_card.configuration(version, self._predict.settings.devices)
        return json_format.ParseDict({"config": plain}, MESSAGES["ModelConfigResponse"]())

    async def _statistics(self, request: Any) -> Any:
        plain = {"model_stats": self._predict.statistics(request.name, request.version)}
        return MESSAGES["ModelStatisticsResponse"](**plain)

    async def _index(self, request: Any) -> Any:
        _check_repository(request)
        models = [
            {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
            for e in self._predict.repository.index(request.ready)
        ]
        return MESSAGES["RepositoryIndexResponse"](models=models)

    async def _load(self, request: Any) -> Any:
        _check_repository(request)
        await self._predict.load(request.model_name, _parameters(request.parameters))
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any) -> Any:
        _check_repository(request)
        await self._predict.unload(request.model_name, _parameters(request.parameters))
        return MESSAGES["RepositoryModelUnloadResponse"]()


def read_infer(request: Any, version: Version) -> Asked:
    """A ``ModelInferRequest`` to a version as arrays.

    Raises:
        RequestError: anything is wrong; the text says what.
    """
    infer.check_inputs(version, [entry.name for entry in request.inputs])
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            "raw_input_contents",
            found=len(raw),
            expected=f"one for each of {len(request.inputs)} inputs, or none",
        )
    inputs = {}
    for number, entry in enumerate(request.inputs):
        tensor, shape = version.inputs[entry.name], list(entry.shape)
        tensors.check_header(tensor, entry.datatype, shape)
        if entry.parameters:
            infer.refuse_parameters(_parameters(entry.parameters), f"input {entry.name}")
        if raw:
            if entry.HasField("contents"):
                raise RequestError(
                    f"input {entry.name}",
                    found="contents and raw_input_contents",
                    expected="one of them",
                    param=entry.name,
                )
            inputs[entry.name] = tensors.from_bytes(raw[number], tensor, shape)
        else:
            inputs[entry.name] = _from_contents(entry.contents, tensor, shape)
    for output in request.outputs:
        if output.parameters:
            infer.refuse_parameters(_parameters(output.parameters), f"output {output.name[:80]}")
    names = infer.check_outputs(version, [output.name for output in request.outputs])
    timeout = infer.read_timeout(_parameters(request.parameters)) if request.parameters else 0
    return Asked(version, inputs, names, timeout)


def write_infer(
    version: Version, request_id: str, outputs: list[tuple[Tensor, Shaped[np.ndarray, "..."]]]
) -> Any:
    """A ``ModelInferResponse`` with raw contents."""
    return _Answer(
        model_name=version.model,
        model_version=str(version.number),
        id=request_id,
        outputs=[
            {"name": tensor.name, "datatype": tensor.datatype, "shape": array.shape}
            for tensor, array in outputs
        ],
        raw_output_contents=[bytes(tensors.to_bytes(array)) for _, array in outputs],
    )


def _from_contents(contents: Any, tensor: Tensor, shape: list[int]) -> np.ndarray:
    where = f"input {tensor.name}: contents"
    given = [field.name for field, _ in contents.ListFields()]
    for name in given:
        if tensor.datatype not in tensors.CONTENTS.get(name, ()):
            fields = [key for key, kinds in tensors.CONTENTS.items() if tensor.datatype in kinds]
            raise RequestError(
                where,
                found=name,
                param=tensor.name,
                expected=f"{fields[0] if fields else 'raw_input_contents'} for {tensor.datatype}",
            )
    values = getattr(contents, given[0]) if given else []
    return tensors.from_values(list(values), tensor, shape, where)


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise RequestError(
            "message", found=str(error)[:200], expected=kind.DESCRIPTOR.name
        ) from None


def _parameters(parameters: Any) -> dict[str, Any]:
    plain = {}
    for name, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        plain[name] = getattr(value, choice) if choice else None
    return plain


def _check_repository(request: Any) -> None:
    if request.repository_name:
        raise RequestError(
            "repository_name",
            found=repr(request.repository_name[:80]),
            expected="nothing: there is one repository",
        )


def _reflected() -> Any:
    """Our pool with the files of the services that come with it."""
    for module in (health_pb2, reflection_pb2):
        POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return POOL
