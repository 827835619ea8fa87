"""Answers to KServe v2's gRPC calls: serialised messages in, serialised messages out."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format
from jaxtyping import Shaped

from ziggurat.serve.errors import RequestError
from ziggurat.serve.memory import Reservation
from ziggurat.serve.predict import decoder as decoding
from ziggurat.serve.predict import grpc_body, infer, model_card, tensors, wire
from ziggurat.serve.predict.grpc_body import parse, plain
from ziggurat.serve.predict.infer import Decoded, asked_of
from ziggurat.serve.predict.memory_file import MemoryFile
from ziggurat.serve.predict.messages import MESSAGES, METHODS
from ziggurat.serve.predict.operations import Operations
from ziggurat.serve.predict.repository import Version
from ziggurat.serve.predict.signature import Tensor

Message = Any
"""A message of the protocol, whose class protobuf makes when the module is imported."""
_Answer = MESSAGES["ModelInferResponse"]
_RAW_OUTPUT = _Answer.DESCRIPTOR.fields_by_name["raw_output_contents"].number


class Calls:
    """Handlers of the gRPC methods, by name."""

    def __init__(self, operations: Operations):
        self._operations = operations
        self._calls: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    async def answer(
        self, name: str, content: bytes | MemoryFile, held: Reservation
    ) -> Sequence[Any]:
        """Bytes of the answer, as buffers that follow one another.

        Args:
            name: the method's.
            content: the request.
            held: is charged for what decoding adds.

        Raises:
            ServeError: the request is wrong, or cannot be answered.
        """
        if name == "ModelInfer":
            return await self._infer(content, held)
        data = bytes(content.view()) if isinstance(content, MemoryFile) else content
        answer = await self._calls[name](parse(MESSAGES[METHODS[name].request], data))
        return [answer.SerializeToString()]

    async def _infer(self, content: bytes | MemoryFile, held: Reservation) -> Sequence[Any]:
        data = content.view() if isinstance(content, MemoryFile) else content
        head, raw = wire.part(data)
        name, number = wire.model(data)
        version = self._operations.repository.get(name, number)
        with infer.counting(version):
            if isinstance(content, MemoryFile) and sum(map(len, head)) > decoding.INLINE:
                del data, head, raw
                job = decoding.job("grpc", version.inputs)
                decoded: Decoded = await self._operations.decoder.run(job, content, held)
            else:
                decoded = grpc_body.decode(b"".join(head), raw, version.inputs)
            asked, _ = asked_of(version, decoded)
        return infer_answer(version, decoded.id, await asked.run())

    async def _live(self, request: Message) -> Message:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ready(self, request: Message) -> Message:
        return MESSAGES["ServerReadyResponse"](ready=self._operations.ready)

    async def _model_ready(self, request: Message) -> Message:
        try:
            self._operations.repository.get(request.name, request.version)
        except RequestError:
            return MESSAGES["ModelReadyResponse"](ready=False)
        return MESSAGES["ModelReadyResponse"](ready=True)

    async def _server_metadata(self, request: Message) -> Message:
        return MESSAGES["ServerMetadataResponse"](**self._operations.server_metadata())

    async def _metadata(self, request: Message) -> Message:
        version = self._operations.repository.get(request.name, request.version)
        served = [v.number for v in self._operations.repository.serving(version.model)]
        return MESSAGES["ModelMetadataResponse"](**model_card.metadata(version, served))

    async def _config(self, request: Message) -> Message:
        version = self._operations.repository.get(request.name, request.version)
        plain = model_card.configuration(version, self._operations.settings.devices)
        return json_format.ParseDict({"config": plain}, MESSAGES["ModelConfigResponse"]())

    async def _statistics(self, request: Message) -> Message:
        plain = {"model_stats": self._operations.statistics(request.name, request.version)}
        return MESSAGES["ModelStatisticsResponse"](**plain)

    async def _index(self, request: Message) -> Message:
        _check_repository(request)
        models = self._operations.index(request.ready)
        return MESSAGES["RepositoryIndexResponse"](models=models)

    async def _load(self, request: Message) -> Message:
        _check_repository(request)
        await self._operations.load(request.model_name, plain(request.parameters))
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Message) -> Message:
        _check_repository(request)
        await self._operations.unload(request.model_name, plain(request.parameters))
        return MESSAGES["RepositoryModelUnloadResponse"]()


def infer_answer(
    version: Version, request_id: str, outputs: list[tuple[Tensor, Shaped[np.ndarray, "..."]]]
) -> Sequence[Any]:
    """Serialise a ``ModelInferResponse``; the outputs follow its head and are not copied."""
    head = _Answer(
        model_name=version.model,
        model_version=str(version.number),
        id=request_id,
        outputs=[
            {"name": tensor.name, "datatype": tensor.datatype, "shape": array.shape}
            for tensor, array in outputs
        ],
    )
    parts: list[Any] = [head.SerializeToString()]
    for _, array in outputs:
        content = tensors.to_bytes(array)
        parts += [wire.field_head(_RAW_OUTPUT, len(content)), content]
    return parts


def _check_repository(request: Message) -> None:
    if request.repository_name:
        raise RequestError(
            "repository_name",
            found=repr(request.repository_name[:80]),
            expected="nothing: there is one repository",
        )
