"""KServe v2 over HTTP, with the binary tensor extension: bodies to requests, outputs to bodies.

The protocol: `Open Inference Protocol <https://github.com/kserve/open-inference-protocol>`_ and
`Triton's extensions <https://github.com/triton-inference-server/server/tree/main/docs/protocol>`_.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Shaped
from starlette.types import Receive, Scope, Send

from ziggurat.serve.errors import RequestError, TooLarge
from ziggurat.serve.predict import infer, tensors
from ziggurat.serve.predict.infer import Asked
from ziggurat.serve.predict.repository import Repository, Version
from ziggurat.serve.predict.signature import Tensor

HEADER_LENGTH = b"inference-header-content-length"


class InputBody(msgspec.Struct, forbid_unknown_fields=True):
    """One input of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class OutputBody(msgspec.Struct, forbid_unknown_fields=True):
    """One output asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON part of a request."""

    inputs: list[InputBody]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[OutputBody] = []


class LoadBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a load or unload."""

    parameters: dict[str, Any] = {}


class IndexBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of an index request."""

    ready: bool = False


_infer_decoder = msgspec.json.Decoder(InferBody)
_encoder = msgspec.json.Encoder()


def decode_infer(
    body: bytes, json_size: int | None, version: Version
) -> tuple[Asked, str, list[bool]]:
    """A request's inputs and what it asks for, its id, and whether each output goes as bytes.

    Args:
        body: JSON, followed by the bytes of binary inputs.
        json_size: from the header ``Inference-Header-Content-Length``; None if all is JSON.

    Raises:
        RequestError: anything is wrong; the text says what.
    """
    view = memoryview(body)
    if json_size is None:
        json_size = len(view)
    elif json_size > len(view):
        raise RequestError(
            "Inference-Header-Content-Length",
            found=json_size,
            expected=f"at most the body's {len(view)} bytes",
        )
    parsed = decode_json(_infer_decoder, view[:json_size], "infer request")
    infer.check_inputs(version, (entry.name for entry in parsed.inputs))
    inputs, at = {}, json_size
    for entry in parsed.inputs:
        tensor = version.inputs[entry.name]
        inputs[entry.name], at = _read_input(entry, tensor, view, at)
    if at != len(view):
        raise RequestError(
            "binary data",
            found=f"{len(view) - at} bytes after the last input",
            expected="no more than binary_data_size says",
        )
    parameters = dict(parsed.parameters)
    default = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    binary = {}
    for output in parsed.outputs:
        own = dict(output.parameters)
        binary[output.name] = _flag(own.pop("binary_data", default), "binary_data")
        infer.refuse_parameters(own, f"output {output.name[:80]}")
    names = infer.check_outputs(version, [output.name for output in parsed.outputs])
    asked = Asked(version, inputs, names, infer.read_timeout(parameters))
    return asked, parsed.id, [binary.get(name, default) for name in names]


def encode_infer(
    version: Version,
    request_id: str,
    outputs: Sequence[tuple[Tensor, Shaped[np.ndarray, "..."]]],
    binary: Sequence[bool],
) -> tuple[bytes, int | None]:
    """The body of an answer, and the size of its JSON part if bytes follow.

    Raises:
        RequestError: a value that JSON cannot hold was asked for as JSON.
    """
    entries, tail = [], []
    for (tensor, array), as_bytes in zip(outputs, binary, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": array.shape,
        }
        if as_bytes:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(tensors.to_bytes(array))
        else:
            entry["data"] = tensors.to_json(array, tensor.name)
        entries.append(entry)
    head: dict[str, Any] = {"model_name": version.model, "model_version": str(version.number)}
    if request_id:
        head["id"] = request_id
    head["outputs"] = entries
    text = _encoder.encode(head)
    return (b"".join((text, *tail)), len(text)) if tail else (text, None)


def decode_json(decoder: msgspec.json.Decoder[Any], data: Any, what: str) -> Any:
    """Parse JSON into a struct.

    Raises:
        RequestError: it is not JSON, or a field is unknown, missing or of another type.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(
            what,
            found=str(error)[:300] or type(error).__name__,
            expected="JSON of the protocol's form",
        ) from None


class Bodies:
    """Reads bodies within limits: of one, and of all that are being served at once.

    Args:
        largest: bytes of one body, after decompression.
        together: bytes of all bodies held at once; beyond that requests are refused, not stored.
    """

    def __init__(self, largest: int, together: int):
        self.largest, self._together, self._held = largest, together, 0

    def hold(self, size: int) -> None:
        """Reserve room for a body; every call is followed by one of :meth:`release`.

        Raises:
            TooLarge: it is larger than one may be.
            Crowded: the bodies under way fill the room.
        """
        if size > self.largest:
            raise TooLarge(
                "request body", found=f"{size} bytes", expected=f"at most {self.largest}"
            )
        if self._held + size > self._together:
            raise Crowded(
                "requests under way",
                found=f"{self._held} bytes of bodies",
                expected=f"at most {self._together}",
                fix="try again later",
            )
        self._held += size

    def release(self, size: int) -> None:
        """Give reserved room back."""
        self._held -= size

    async def read(self, receive: Receive, encoding: bytes, held: list[int]) -> bytes:
        """The whole body; what was reserved for it is added to ``held``.

        Raises:
            RequestError: it is too large, or not compressed as it says.
            ClientLeft: the client has gone.
        """
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientLeft
            part = message.get("body", b"")
            if part:
                size = len(part)
                if sum(held) + size > self.largest:
                    raise TooLarge(
                        "request body", found=f"over {self.largest} bytes", expected="fewer"
                    )
                self.hold(size)
                held.append(size)
                parts.append(part)
            if not message.get("more_body"):
                break
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return body if encoding in (b"", b"identity") else self._inflate(body, encoding, held)

    def _inflate(self, body: bytes, encoding: bytes, held: list[int]) -> bytes:
        if encoding not in (b"gzip", b"deflate"):
            raise UnknownEncoding(
                "Content-Encoding",
                found=encoding.decode("latin-1")[:40],
                expected="gzip or deflate",
            )
        machine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            plain = machine.decompress(body, self.largest + 1)
        except zlib.error as error:
            raise RequestError(
                "request body", found=str(error), expected=encoding.decode()
            ) from None
        if len(plain) > self.largest:
            raise TooLarge("request body", found=f"over {self.largest} bytes", expected="fewer")
        if not machine.eof:
            raise RequestError("request body", found="its end missing", expected=encoding.decode())
        self.hold(len(plain))
        held.append(len(plain))
        return plain


class ClientLeft(Exception):
    """The client closed the connection before its body was whole."""


class Crowded(RequestError):
    """The bodies of all requests under way are as large as the server holds."""

    status = 429
    code = "queue_full"


class UnknownEncoding(RequestError):
    """The body is compressed in a way that is not read."""

    status = 415


def header(scope: Scope, name: bytes) -> bytes:
    """A request header, or nothing; the last one counts."""
    found = b""
    for key, value in scope["headers"]:
        if key == name:
            found = value
    return found


def header_number(scope: Scope, name: bytes) -> int | None:
    """A header that is a number of bytes.

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


async def send_body(
    send: Send, body: bytes, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Answer with one body; JSON unless ``headers`` say otherwise."""
    kind = () if any(k == b"content-type" for k, _ in headers) else _JSON
    length = (b"content-length", b"%d" % len(body))
    start = {"type": "http.response.start", "status": status, "headers": [*kind, *headers, length]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


_JSON = ((b"content-type", b"application/json"),)


class Infer:
    """The endpoint of inference, an ASGI application of its own to spare the request objects.

    Args:
        repository: the models.
        bodies: limits.
        fail: answers an exception.
    """

    def __init__(self, repository: Repository, bodies: Bodies, fail: Any):
        self._repository, self._bodies, self._fail = repository, bodies, fail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[int] = []
        try:
            where: Mapping[str, str] = scope["path_params"]
            name, number = where["model"], where.get("version", "")
            self._repository.get(name, number)
            self._check_length(scope)
            json_size = header_number(scope, HEADER_LENGTH)
            body = await self._bodies.read(receive, header(scope, b"content-encoding"), held)
            version = self._repository.get(name, number)  # another may serve since
            with infer.counting(version):
                asked, request_id, binary = decode_infer(body, json_size, version)
            outputs = await asked.run()
            answer, size = encode_infer(version, request_id, outputs, binary)
        except ClientLeft:
            return
        except Exception as error:
            await self._fail(error, send)
            return
        finally:
            self._bodies.release(sum(held))
        headers = []
        if size is not None:
            headers = [
                (b"content-type", b"application/octet-stream"),
                (HEADER_LENGTH, b"%d" % size),
            ]
        await send_body(send, answer, 200, headers)

    def _check_length(self, scope: Scope) -> None:
        length = header_number(scope, b"content-length")
        if length is not None and length > self._bodies.largest:
            raise TooLarge(
                "request body", found=f"{length} bytes", expected=f"at most {self._bodies.largest}"
            )


def _read_input(
    entry: InputBody, tensor: Tensor, view: memoryview, at: int
) -> tuple[np.ndarray, int]:
    """One input, and where the next one's bytes begin."""
    tensors.check_header(tensor, entry.datatype, entry.shape)
    parameters = dict(entry.parameters)
    size = parameters.pop("binary_data_size", None)
    infer.refuse_parameters(parameters, f"input {entry.name}")
    where, has_data = f"input {entry.name}", bool(entry.data)
    if size is None:
        if not has_data:
            raise RequestError(
                where, found="no data", expected="data or binary_data_size", param=entry.name
            )
        return tensors.from_json(entry.data, tensor, entry.shape), at
    if has_data:
        raise RequestError(
            where, found="data and binary_data_size", expected="one of them", param=entry.name
        )
    if type(size) is not int or not 0 <= size <= len(view) - at:
        raise RequestError(
            f"{where}: binary_data_size",
            found=repr(size)[:40],
            expected=f"at most the {len(view) - at} bytes that follow",
            param=entry.name,
        )
    return tensors.from_bytes(view[at : at + size], tensor, entry.shape), at + size


def _flag(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise RequestError(
            f"parameter {name}", found=repr(value)[:40], expected="true or false", param=name
        )
    return value
