"""A ``ModelInferRequest`` turned into arrays.

Nothing here knows models or JAX: a small process of its own can do it (:mod:`.decoder`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ziggurat.serve.errors import RequestError
from ziggurat.serve.predict import infer, tensors
from ziggurat.serve.predict.infer import Decoded
from ziggurat.serve.predict.messages import MESSAGES
from ziggurat.serve.predict.signature import Tensor

_Infer = MESSAGES["ModelInferRequest"]


def decode(head: bytes, raw: Sequence[memoryview], wanted: Mapping[str, Tensor]) -> Decoded:
    """Decode a request's arrays and settings.

    Args:
        head: the message without its raw contents.
        raw: those; views that the arrays will share.
        wanted: the model's inputs.

    Raises:
        RequestError: anything is wrong; the text says what.
    """
    request = parse(_Infer, head)
    infer.check_inputs(wanted, [entry.name for entry in request.inputs])
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            "raw_input_contents",
            found=len(raw),
            expected=f"one for each of {len(request.inputs)} inputs, or none",
        )
    inputs = {}
    for number, entry in enumerate(request.inputs):
        tensor, shape = wanted[entry.name], list(entry.shape)
        tensors.check_header(tensor, entry.datatype, shape)
        given = plain(entry.parameters)
        size = given.pop("binary_data_size", None)
        infer.refuse_parameters(given, f"input {entry.name}")
        if raw:
            inputs[entry.name] = _from_raw(entry, raw[number], tensor, shape, size)
        else:
            inputs[entry.name] = _from_contents(entry.contents, tensor, shape)
    outputs = [(output.name, plain(output.parameters)) for output in request.outputs]
    return Decoded(request.id, inputs, outputs, plain(request.parameters))


def parse(kind: Any, data: bytes) -> Any:
    """Parse a message of a given type.

    Raises:
        RequestError: the bytes are no such message.
    """
    try:
        return kind.FromString(data)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise RequestError(
            "message", found=str(error)[:200], expected=kind.DESCRIPTOR.name
        ) from None


def plain(parameters: Any) -> dict[str, Any]:
    """Convert parameters to plain values."""
    found = {}
    for name, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        found[name] = getattr(value, choice) if choice else None
    return found


def _from_raw(
    entry: Any, data: memoryview, tensor: Tensor, shape: list[int], size: Any
) -> np.ndarray:
    if entry.HasField("contents"):
        raise RequestError(
            f"input {entry.name}",
            found="contents and raw_input_contents",
            expected="one of them",
            param=entry.name,
        )
    # KServe's SDK repeats the number of bytes, as the HTTP extension has it; it must be true.
    if size is not None and size != len(data):
        raise RequestError(
            f"input {entry.name}: binary_data_size",
            found=repr(size)[:40],
            expected=f"the {len(data)} bytes of its raw contents",
            param=entry.name,
        )
    return tensors.from_bytes(data, tensor, shape)


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
    values = getattr(contents, given[0]) if given else ()
    if len(values) != math.prod(shape):  # told before they are turned into an array
        raise RequestError(
            where,
            found=f"{len(values)} values",
            expected=f"shape {shape}",
            param=tensor.name,
        )
    return tensors.from_values(values, tensor, shape, where)
