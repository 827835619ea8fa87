"""KServe v2 over HTTP, with the binary tensor extension: bodies to requests, outputs to bodies.

The protocol: `Open Inference Protocol <https://github.com/kserve/open-inference-protocol>`_ and
`Triton's extensions <https://github.com/triton-inference-server/server/tree/main/docs/protocol>`_.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Shaped
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ziggurat.core.json_types import JsonObject
from ziggurat.serve.errors import RequestError, TooLarge
from ziggurat.serve.http import ClientGone, Describe, http_error, unless_gone
from ziggurat.serve.memory import RequestMemory, Reservation
from ziggurat.serve.predict import body as bodies
from ziggurat.serve.predict import decoder as decoding
from ziggurat.serve.predict import infer, tensors
from ziggurat.serve.predict.decoder import DecoderPool
from ziggurat.serve.predict.infer import Decoded, asked_of
from ziggurat.serve.predict.memory_file import MemoryFile
from ziggurat.serve.predict.repository import Repository, Version
from ziggurat.serve.predict.signature import Tensor

HEADER_LENGTH = "inference-header-content-length"


_encoder = msgspec.json.Encoder()
_LARGE_ANSWER = 2**16
"""Bytes of outputs from which the answer is written in a thread."""


def encode_infer(
    version: Version,
    request_id: str,
    outputs: Sequence[tuple[Tensor, Shaped[np.ndarray, "..."]]],
    binary: Sequence[bool],
) -> tuple[bytes, int | None]:
    """Encode an answer: its body, and the size of its JSON part if bytes follow.

    Raises:
        RequestError: a value that JSON cannot hold was asked for as JSON.
    """
    entries, tail = [], []
    for (tensor, array), as_bytes in zip(outputs, binary, strict=True):
        entry: JsonObject = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": array.shape,
        }
        if as_bytes:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(tensors.to_bytes(array))
        else:
            entry["data"] = msgspec.Raw(tensors.to_json(array, tensor.name))
        entries.append(entry)
    head: JsonObject = {"model_name": version.model, "model_version": str(version.number)}
    if request_id:
        head["id"] = request_id
    head["outputs"] = entries
    text = _encoder.encode(head)
    return (b"".join((text, *tail)), len(text)) if tail else (text, None)


async def read_body(receive: Receive, held: Reservation) -> bytes | MemoryFile:
    """Read the whole body, counted against the budget as it comes; a large one goes to a file.

    Raises:
        RequestError: it is too large, or comes too slowly.
        ClientGone: the client left before its end.
    """
    whole, file = b"", None
    try:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            part = message.get("body", b"")
            held.add(len(part))
            if file is not None:
                file.write(part)
            elif len(whole) + len(part) > decoding.INLINE:
                file = MemoryFile.of((whole, part))
            else:
                whole = whole + part if whole else part
            if not message.get("more_body"):
                return file or whole
    except BaseException:
        _give_up(file)
        raise


def _give_up(body: bytes | MemoryFile | None) -> None:
    """Close the file of a body in a thread: freeing many pages takes milliseconds."""
    if isinstance(body, MemoryFile):
        asyncio.get_running_loop().run_in_executor(None, body.close)


def header(scope: Scope, name: bytes) -> bytes:
    """Value of a request header; the last one counts."""
    found = b""
    for key, value in scope["headers"]:
        if key == name:
            found = value
    return found


def header_number(scope: Scope, name: bytes) -> int | None:
    """Value of a header that is a number of bytes.

    Raises:
        RequestError: it is something else.
    """
    text = header(scope, name)
    if not text:
        return None
    if not text.isdigit() or len(text) > 15:
        raise RequestError(
            name.decode(), found=repr(text[:40].decode("latin-1")), expected="a number of bytes"
        )
    return int(text)


class Infer:
    """ASGI application of the inference endpoint, which spares the request objects.

    Args:
        repository: the models.
        memory: the budget of all requests.
        decoder: decodes what is large.
        describe: status and body of an error.
    """

    def __init__(
        self,
        repository: Repository,
        memory: RequestMemory,
        decoder: DecoderPool,
        describe: Describe,
    ):
        self._repository, self._memory, self._decoder = repository, memory, decoder
        self._describe = describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held, body = self._memory.open(), b""
        try:
            where: Mapping[str, str] = scope["path_params"]
            name, number = where["model"], where.get("version", "")
            self._repository.get(name, number)
            self._check_length(scope)
            json_size = header_number(scope, HEADER_LENGTH.encode())
            body = await read_body(receive, held)
            version = self._repository.get(name, number)  # another may serve since
            with infer.counting(version):
                encoding = header(scope, b"content-encoding")
                decoded = self._decoded(body, json_size, encoding, version, held)
                if not isinstance(decoded, Decoded):
                    decoded = await unless_gone(receive, decoded)
                asked, binary = asked_of(version, decoded)
            outputs = await unless_gone(receive, asked.run())
            size = sum(array.nbytes for _, array in outputs)
            answer = encode_infer, version, decoded.id, outputs, binary
            if size > _LARGE_ANSWER:
                text, split = await asyncio.to_thread(*answer)
            else:
                text, split = answer[0](*answer[1:])
        except ClientGone:
            return
        except Exception as error:
            await http_error(error, self._describe)(scope, receive, send)
            return
        finally:
            held.close()
            _give_up(body)
        headers = {} if split is None else {HEADER_LENGTH: str(split)}
        kind = "application/json" if split is None else "application/octet-stream"
        await Response(text, 200, headers, kind)(scope, receive, send)

    def _decoded(
        self,
        body: bytes | MemoryFile,
        json_size: int | None,
        encoding: bytes,
        version: Version,
        held: Reservation,
    ) -> Any:
        """A request's content if it is small; else what is to be awaited for it."""
        packed = encoding not in (b"", b"identity")
        size = body.size if isinstance(body, MemoryFile) else len(body)
        text = size if json_size is None else min(json_size, size)
        if not packed and text <= decoding.INLINE:
            data = body.view() if isinstance(body, MemoryFile) else body
            return bodies.decode(data, json_size, version.inputs)
        file = body if isinstance(body, MemoryFile) else MemoryFile.of([body])
        job = decoding.job(
            "http",
            version.inputs,
            encoding=encoding.decode("latin-1") if packed else "",
            json_size=json_size,
            largest=self._memory.largest,
        )
        return self._decoder.run(job, file, held)

    def _check_length(self, scope: Scope) -> None:
        length = header_number(scope, b"content-length")
        if length is not None and length > self._memory.largest:
            raise TooLarge(
                "request body", found=f"{length} bytes", expected=f"at most {self._memory.largest}"
            )
