"""KServe v2 over gRPC, on the event loop of the HTTP server.

Messages are parsed here rather than by the library, so that a broken one is INVALID_ARGUMENT and
not an internal error. Every call is handled as a stream of requests, also those of one: the library
then reads a message when it is asked to, so that the key is checked and room is found before any
byte of it is in memory. The health and reflection services have handlers of their own and no
limits.
"""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer as _HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2
from jaxtyping import Shaped

from ziggurat.core.errors import ServeError
from ziggurat.serve.errors import RequestError
from ziggurat.serve.predict import decoder as decoding
from ziggurat.serve.predict import grpc_body, infer, model_card, tensors, wire
from ziggurat.serve.predict.grpc_body import parse, plain
from ziggurat.serve.predict.infer import Decoded, asked_of
from ziggurat.serve.predict.memory import Crowded, Held
from ziggurat.serve.predict.messages import MESSAGES, METHODS, POOL, SERVICE
from ziggurat.serve.predict.operations import Operations, describe
from ziggurat.serve.predict.repository import Version
from ziggurat.serve.predict.signature import Tensor
from ziggurat.serve.tls import Tls

_Answer = MESSAGES["ModelInferResponse"]
_Streamed = MESSAGES["ModelStreamInferResponse"]
_OVERHEAD = 2**16
"""What a message may hold beside tensor bytes (bytes)."""
_CALLS = 1024
"""Inferences under way at once; more are refused."""
_STREAMS = 256
"""Streams open at once; more are refused."""
_READ_SECONDS = 20.0
"""How long one message may take to arrive, and how long it may wait for room to be read into."""
_READS, _FAST_SECONDS = 2, 0.1
"""Messages of inferences that are read at once, and how long one may take so."""
_SLOW_READS = 8
"""Messages that took longer and are read on beside the others; more are refused."""
_CONTROL = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
"""Calls for an administrator's key, if there is one."""

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


class TooSlow(RequestError):
    """A message did not arrive in time."""

    status = 408


class GrpcServer:
    """A repository on a gRPC port, with the health and reflection services.

    Args:
        operations: what it serves.
        address: ``HOST:PORT``; port 0 takes a free one.
        keys: with any, calls need one of them as ``authorization: Bearer KEY``; the health and
            reflection services do not, nor do ServerLive and ServerReady.
        admin_keys: with any, loading and unloading need one of them; they open the rest too.
        tls: certificate and key; without, the port speaks plain text.
    """

    def __init__(
        self,
        operations: Operations,
        address: str,
        keys: Sequence[str] = (),
        *,
        admin_keys: Sequence[str] = (),
        tls: Tls | None = None,
    ):
        self._operations, self._address, self._tls = operations, address, tls
        self._admin_keys = [f"bearer {key}".encode() for key in admin_keys]
        self._keys = [f"bearer {key}".encode() for key in keys]
        if self._keys:
            self._keys += self._admin_keys
        # A message does not tell its size before it is read, and is there three times while it is:
        # in the transport, as it is put together, and as bytes. So few are read at once.
        self._fast, self._slow = asyncio.Semaphore(_READS), asyncio.Semaphore(_SLOW_READS)
        self._calls = self._streams = 0
        self._server: aio.Server | None = None
        self.port = 0
        """The port it listens on, once started."""

    async def start(self) -> None:
        """Listen; the event loop is the one that runs this.

        Raises:
            ServeError: the port is in use.
        """
        limit = self._operations.settings.max_body + _OVERHEAD
        self._health = _HealthServicer()
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        handlers = grpc.method_handlers_generic_handler(SERVICE, self._handlers())
        self._server.add_generic_rpc_handlers((handlers,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, pool=_reflected())
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(self._address)
            else:
                certificate, key = self._tls.read()
                pair = grpc.ssl_server_credentials([(key, certificate)])
                self.port = self._server.add_secure_port(self._address, pair)
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
            "ModelInfer": self._never,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        found = {
            name: grpc.stream_unary_rpc_method_handler(self._unary(name, call))
            for name, call in calls.items()
        }
        found["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return found

    def _unary(self, name: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """A call of one message each way."""
        kind = MESSAGES[METHODS[name].request]
        free = name in ("ServerLive", "ServerReady")

        async def answer(requests: AsyncIterator[bytes], context: Any) -> bytes:
            held = self._operations.memory.open()
            try:
                if not free:
                    self._check_key(context, name in _CONTROL)
                if name == "ModelInfer":
                    with self._counted("_calls", _CALLS, "inferences"):
                        data = await self._read(requests, held)
                        return (await self._infer(data or b"", held)).SerializeToString()
                data = await asyncio.wait_for(anext(requests, b""), _READ_SECONDS)
                return (await call(parse(kind, data))).SerializeToString()
            except Exception as error:
                await _abort(context, error)
                raise  # abort does not return
            finally:
                held.close()

        return answer

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """One answer for each request, in order; an error is an answer too and ends nothing."""
        try:
            self._check_key(context)
            with self._counted("_streams", _STREAMS, "streams"):
                async for answer in self._answers(requests):
                    yield answer
        except Exception as error:
            await _abort(context, error)

    async def _answers(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for data in requests:
            held = self._operations.memory.open()
            try:
                held.add(len(data))
                answer = _Streamed(infer_response=await self._infer(data, held))
            except Exception as error:
                answer = _Streamed(error_message=describe(error)[1])
            finally:
                held.close()
            yield answer.SerializeToString()

    @contextlib.contextmanager
    def _counted(self, name: str, limit: int, what: str) -> Iterator[None]:
        """Count what is under way.

        Raises:
            Crowded: there are as many as there may be.
        """
        count = getattr(self, name)
        if count >= limit:
            raise Crowded(what, found=count, expected=f"fewer than {limit}", fix="try again later")
        setattr(self, name, count + 1)
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) - 1)

    async def _read(self, requests: AsyncIterator[bytes], held: Held) -> bytes | None:
        """One message, read when there is room for it; a slow one makes way for the next.

        Raises:
            RequestError: there is no room, or it does not arrive in time.
        """

        async def whole() -> bytes | None:
            return await anext(requests, None)

        try:
            async with asyncio.timeout(_READ_SECONDS):
                await self._fast.acquire()
        except TimeoutError:
            raise _crowded("messages being read") from None
        lane, reading = self._fast, asyncio.ensure_future(whole())
        try:
            await asyncio.wait({reading}, timeout=_FAST_SECONDS)
            if not reading.done():
                if self._slow.locked():
                    raise _crowded("messages that come slowly")
                self._fast.release()
                lane = self._slow
                await lane.acquire()
                await asyncio.wait({reading}, timeout=_READ_SECONDS)
            if not reading.done():
                raise TooSlow(
                    "message", found=f"not whole in {_READ_SECONDS:.0f} s", expected="its end"
                )
            data = reading.result()
        finally:
            reading.cancel()
            lane.release()
        held.add(len(data or b""))
        return data

    def _check_key(self, context: Any, control: bool = False) -> None:
        keys = self._admin_keys if control and self._admin_keys else self._keys
        if not keys:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        scheme, _, token = str(given).partition(" ")
        text = f"{scheme.lower()} {token.strip()}".encode()
        # All are compared, each in constant time: timing tells nothing about them.
        equal = [hmac.compare_digest(text, key) for key in keys]
        if not any(equal):
            raise NoKey(
                "administrator's key" if keys is self._admin_keys else "API key",
                found="none that is known",
                expected="metadata authorization: Bearer KEY",
            )

    async def _infer(self, data: bytes, held: Held) -> Any:
        head, raw = wire.part(data)
        name, number = wire.model(data)
        version = self._operations.repository.get(name, number)
        with infer.counting(version):
            decoded = await self._decoded(head, raw, version, held)
            asked, _ = asked_of(version, decoded)
        return write_infer(version, decoded.id, await asked.run())

    async def _decoded(
        self, head: list[memoryview], raw: list[memoryview], version: Version, held: Held
    ) -> Decoded:
        if sum(map(len, head)) <= decoding.INLINE:
            return grpc_body.decode(b"".join(head), raw, version.inputs)
        job = decoding.job("grpc", version.inputs, raw=[len(part) for part in raw])
        return await self._operations.decoder.run(job, [*head, *raw], held)

    async def _never(self, request: Any) -> Any:
        raise AssertionError("inferences are read as bytes")

    async def _live(self, request: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ready(self, request: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._operations.ready)

    async def _model_ready(self, request: Any) -> Any:
        try:
            self._operations.repository.get(request.name, request.version)
        except RequestError:
            return MESSAGES["ModelReadyResponse"](ready=False)
        return MESSAGES["ModelReadyResponse"](ready=True)

    async def _server_metadata(self, request: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](**self._operations.server_metadata())

    async def _metadata(self, request: Any) -> Any:
        version = self._operations.repository.get(request.name, request.version)
        served = [v.number for v in self._operations.repository.serving(version.model)]
        return MESSAGES["ModelMetadataResponse"](**model_card.metadata(version, served))

    async def _config(self, request: Any) -> Any:
        version = self._operations.repository.get(request.name, request.version)
        plain = model_card.configuration(version, self._operations.settings.devices)
        return json_format.ParseDict({"config": plain}, MESSAGES["ModelConfigResponse"]())

    async def _statistics(self, request: Any) -> Any:
        plain = {"model_stats": self._operations.statistics(request.name, request.version)}
        return MESSAGES["ModelStatisticsResponse"](**plain)

    async def _index(self, request: Any) -> Any:
        _check_repository(request)
        models = self._operations.index(request.ready)
        return MESSAGES["RepositoryIndexResponse"](models=models)

    async def _load(self, request: Any) -> Any:
        _check_repository(request)
        await self._operations.load(request.model_name, plain(request.parameters))
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any) -> Any:
        _check_repository(request)
        await self._operations.unload(request.model_name, plain(request.parameters))
        return MESSAGES["RepositoryModelUnloadResponse"]()


def _crowded(what: str) -> Crowded:
    return Crowded(what, found="as many as there is room for", expected="fewer",
                   fix="try again later")  # fmt: skip


async def _abort(context: Any, error: Exception) -> None:
    """End a call with what an error says."""
    status, text = describe(error)
    await context.abort(CODES.get(status, grpc.StatusCode.INTERNAL), text)


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
