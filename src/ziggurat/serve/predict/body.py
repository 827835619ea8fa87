"""The body of an inference request over HTTP, turned into arrays.

Nothing here knows models or JAX: a small process of its own can do it (:mod:`.decoder`).
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from ziggurat.core.json_types import JsonObject
from ziggurat.serve.errors import RequestError, TooLarge
from ziggurat.serve.predict import infer, tensors
from ziggurat.serve.predict.infer import Decoded
from ziggurat.serve.predict.signature import BATCH, Tensor


class InputBody(msgspec.Struct):
    """An input of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: JsonObject | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


class OutputBody(msgspec.Struct):
    """An output that a request names."""

    name: str
    parameters: JsonObject | None = None


class InferBody(msgspec.Struct):
    """JSON part of a request.

    Fields that the protocol does not name are let by, as its JSON schema does: clients add their
    own.
    """

    inputs: list[InputBody]
    id: str | None = None
    parameters: JsonObject | None = None
    outputs: list[OutputBody] | None = None


class UnknownEncoding(RequestError):
    """Error: the body is compressed in a way that is not supported."""

    status = 415


_decoder = msgspec.json.Decoder(InferBody)


def decode(body: Any, json_size: int | None, wanted: Mapping[str, Tensor]) -> Decoded:
    """Decode a request's arrays and settings.

    Args:
        body: JSON, followed by the bytes of binary inputs.
        json_size: from the header ``Inference-Header-Content-Length``; None if all is JSON. With 0
            the whole body is the one input of the model, one row, its open size filled in.
        wanted: the model's inputs.

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
    elif json_size == 0:
        return _raw_request(view, wanted)
    parsed = decode_json(_decoder, view[:json_size], "infer request")
    infer.check_inputs(wanted, (entry.name for entry in parsed.inputs))
    inputs, at = {}, json_size
    for entry in parsed.inputs:
        inputs[entry.name], at = _read_input(entry, wanted[entry.name], view, at)
    if at != len(view):
        raise RequestError(
            "binary data",
            found=f"{len(view) - at} bytes after the last input",
            expected="no more than binary_data_size says",
        )
    outputs = [(output.name, output.parameters or {}) for output in parsed.outputs or ()]
    return Decoded(parsed.id or "", inputs, outputs, parsed.parameters or {})


def decode_json(decoder: msgspec.json.Decoder[Any], data: Any, what: str) -> Any:
    """Parse JSON into a struct.

    Raises:
        RequestError: it is not JSON, or a field is missing or of another type.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(
            what,
            found=str(error)[:300] or type(error).__name__,
            expected="JSON of the protocol's form",
        ) from None


def inflate(body: Any, encoding: str, largest: int) -> bytes:
    """Decompress a body.

    Raises:
        RequestError: it is not compressed as it says, or larger than ``largest`` bytes.
    """
    if encoding not in ("gzip", "deflate"):
        raise UnknownEncoding("Content-Encoding", found=encoding[:40], expected="gzip or deflate")
    machine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = machine.decompress(body, largest + 1)
    except zlib.error as error:
        raise RequestError("request body", found=str(error), expected=encoding) from None
    if len(plain) > largest:
        raise TooLarge("request body", found=f"over {largest} bytes", expected="fewer")
    if not machine.eof:
        raise RequestError("request body", found="its end missing", expected=encoding)
    return plain


def _raw_request(view: memoryview, wanted: Mapping[str, Tensor]) -> Decoded:
    """Triton's raw binary request: the body is the one input of a batch of one, as bytes."""
    tensor = next(iter(wanted.values()))
    shape = [1 if size == BATCH else size for size in tensor.shape]
    open_sizes = [size for size in shape if isinstance(size, str)]
    if len(wanted) != 1 or len(open_sizes) > 1:
        raise RequestError(
            "Inference-Header-Content-Length",
            found=0,
            expected="a JSON part: only a model of one input with at most one open size beside the "
            "batch can do without",
        )
    fixed = tensor.dtype.itemsize * math.prod(size for size in shape if isinstance(size, int))
    rest = len(view) // fixed if fixed else 0
    filled = [rest if isinstance(size, str) else size for size in shape]
    return Decoded("", {tensor.name: tensors.from_bytes(view, tensor, filled)}, [], RAW_ANSWER)


RAW_ANSWER: JsonObject = {"binary_data_output": True}
"""Parameters of a raw request: what comes as bytes is answered in bytes."""


def _read_input(
    entry: InputBody, tensor: Tensor, view: memoryview, at: int
) -> tuple[np.ndarray, int]:
    """One input, and where the next one's bytes begin."""
    tensors.check_header(tensor, entry.datatype, entry.shape)
    parameters = dict(entry.parameters or {})
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
