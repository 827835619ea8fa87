"""Tensors on the wire: JSON lists, little-endian bytes, and protobuf's repeated fields.

>>> from ziggurat.serve.predict.signature import Tensor
>>> x = Tensor(name="x", datatype="FP32", shape=("b", 2))
>>> from_json(msgspec.Raw(b"[[1, 2.5]]"), x, [1, 2]).tolist(), bytes(to_bytes(np.float32([1])))
([[1.0, 2.5]], b'\\x00\\x00\\x80?')
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Shaped

from ziggurat.core.json_types import Json
from ziggurat.serve.errors import RequestError
from ziggurat.serve.predict.signature import DATATYPES, Tensor

_LARGE = 2**18
"""Bytes of a list of numbers from which it is read in pieces."""
_PIECE = 2**14
"""Values written at once; between pieces other threads run."""
_json = msgspec.json.Encoder()
_BLANK = b" \t\r\n"
CONTENTS: dict[str, tuple[str, ...]] = {
    "bool_contents": ("BOOL",),
    "int_contents": ("INT8", "INT16", "INT32"),
    "int64_contents": ("INT64",),
    "uint_contents": ("UINT8", "UINT16", "UINT32"),
    "uint64_contents": ("UINT64",),
    "fp32_contents": ("FP32",),
    "fp64_contents": ("FP64",),
    "bytes_contents": (),
}
"""Field of ``InferTensorContents`` -> the data types it carries; FP16 and BF16 have none."""


def check_header(tensor: Tensor, datatype: str, shape: Sequence[int]) -> None:
    """Compare a request's description of an input with the signature.

    Raises:
        RequestError: another type, another rank, or a size below 0.
    """
    where = f"input {tensor.name}"
    if datatype != tensor.datatype:
        if datatype != "BYTES" and datatype not in DATATYPES:
            raise RequestError(
                where,
                found=f"datatype {datatype[:40]!r}",
                expected=tensor.datatype,
                param=tensor.name,
            )
        fix = "tokenise text before you send it" if datatype == "BYTES" else ""
        raise RequestError(
            where,
            found=f"datatype {datatype}",
            expected=tensor.datatype,
            fix=fix,
            param=tensor.name,
        )
    if len(shape) != len(tensor.shape) or any(not 0 <= size < 2**31 for size in shape):
        raise RequestError(
            where,
            found=f"shape {str(list(shape))[:80]}",
            expected=f"[{', '.join(map(str, tensor.shape))}]",
            param=tensor.name,
        )


def from_bytes(
    data: bytes | memoryview, tensor: Tensor, shape: Sequence[int]
) -> Shaped[np.ndarray, "..."]:
    """View row-major little-endian bytes as a read-only array, without a copy.

    Raises:
        RequestError: the number of bytes is not that of the shape, or a BOOL is neither 0 nor 1.
    """
    size = math.prod(shape) * tensor.dtype.itemsize
    if len(data) != size:
        raise RequestError(
            f"input {tensor.name}",
            found=f"{len(data)} bytes",
            expected=f"{size} for {tensor.datatype}{list(shape)}",
            param=tensor.name,
        )
    if tensor.datatype == "BOOL" and size and np.frombuffer(data, np.uint8).max() > 1:
        raise RequestError(
            f"input {tensor.name}",
            found="a byte above 1",
            expected="0 or 1 for BOOL",
            param=tensor.name,
        )
    if not size:
        return np.zeros(tuple(shape), tensor.dtype)
    return np.frombuffer(data, tensor.dtype).reshape(tuple(shape))


def from_json(raw: msgspec.Raw, tensor: Tensor, shape: Sequence[int]) -> Shaped[np.ndarray, "..."]:
    """Convert a JSON list, flat or nested as the shape is, to an array.

    Raises:
        RequestError: not such a list, or a value that the type cannot hold.
    """
    where = f"input {tensor.name}: data"
    depth, count = _depth(memoryview(raw), len(shape)), math.prod(shape)
    if len(raw) > _LARGE:
        # Rows and values are parted by one comma fewer than there are values: told before any is
        # turned into an object.
        view = memoryview(raw)
        starts = range(0, len(view), _LARGE)
        found = sum(bytes(view[at : at + _LARGE]).count(b",") for at in starts) + 1
        if found != max(count, 1):
            text = f"{found} values"
            raise RequestError(
                where, found=text, expected=f"shape {list(shape)}", param=tensor.name
            )
        if depth == 1:
            return _in_pieces(view, tensor, shape, where)
    values = _decoded(raw, depth, tensor, where)
    return from_values(values, tensor, shape, where)


def _in_pieces(
    view: memoryview, tensor: Tensor, shape: Sequence[int], where: str
) -> Shaped[np.ndarray, "..."]:
    """A long flat list, without ever holding more than a piece of it as text or as objects."""
    whole, at, begin = np.empty(math.prod(shape), tensor.dtype), 0, 1
    while begin < len(view):
        piece = bytes(view[begin : begin + _LARGE])
        last = begin + len(piece) >= len(view)
        end = piece.rfind(b"]" if last else b",")
        if end < 0:  # blanks for longer than any number
            raise RequestError(
                where, found="a gap", expected=f"a list of {tensor.datatype}", param=tensor.name
            )
        piece = piece[:end]
        count = piece.count(b",") + 1
        part = _decoded(b"[" + piece + b"]", 1, tensor, where)
        part = from_values(part, tensor, [count], where)
        whole[at : at + count] = part
        at, begin = at + count, begin + end + 1
        if last:
            break
    return whole.reshape(tuple(shape))


def _decoded(raw: Json, depth: int, tensor: Tensor, where: str) -> list[Json]:
    try:
        return _list_decoder(tensor.dtype.kind, depth).decode(raw)
    except msgspec.DecodeError as error:
        raise RequestError(
            where, found=str(error), expected=f"a list of {tensor.datatype}", param=tensor.name
        ) from None


def from_values(
    values: Sequence[Json], tensor: Tensor, shape: Sequence[int], where: str
) -> Shaped[np.ndarray, "..."]:
    """Convert numbers to an array, checked for range and count.

    Raises:
        RequestError: too few, too many, ragged, or beyond the type.
    """
    try:
        with np.errstate(over="raise"):
            listed = isinstance(values, list)
            array = np.array(values, tensor.dtype) if listed else _flat(values, tensor.dtype)
            if tensor.datatype == "BF16" and not np.isfinite(array).all():
                raise OverflowError  # ml_dtypes rounds to infinity without a word
    except (OverflowError, FloatingPointError):
        raise RequestError(
            where,
            found=f"a value beyond {tensor.datatype}",
            expected="values it can hold",
            param=tensor.name,
        ) from None
    except ValueError:
        raise RequestError(
            where,
            found="lists of different lengths",
            expected=f"shape {list(shape)}",
            param=tensor.name,
        ) from None
    nested = array.ndim == 1 or array.shape == tuple(shape)
    if array.size != math.prod(shape) or not nested:
        found = f"{array.size} values" if array.ndim == 1 else f"shape {list(array.shape)}"
        raise RequestError(where, found=found, expected=f"shape {list(shape)}", param=tensor.name)
    return array.reshape(tuple(shape))


def _flat(values: Sequence[Json], dtype: np.dtype) -> np.ndarray:
    """An array from protobuf's repeated numbers, without a list of them in between."""
    return np.fromiter(values, dtype, len(values))


def to_bytes(array: Shaped[np.ndarray, "..."]) -> memoryview:
    """Row-major little-endian bytes; a view if the array is contiguous."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data


def to_json(array: Shaped[np.ndarray, "..."], name: str) -> bytes:
    """Values as the text of a flat list, written piece by piece.

    Raises:
        RequestError: a value is not finite, which JSON cannot say.
    """
    if array.dtype.kind not in "biu" and not np.isfinite(array).all():
        raise RequestError(
            f"output {name}",
            found="NaN or infinity, which JSON cannot hold",
            expected="finite values",
            fix="ask for binary_data",
            param=name,
        )
    flat = array.ravel()
    pieces = [_json.encode(flat[i : i + _PIECE].tolist()) for i in range(0, flat.size, _PIECE)]
    if len(pieces) == 1:
        return pieces[0]
    return b"[" + b",".join(piece[1:-1] for piece in pieces) + b"]"


def _depth(raw: memoryview, rank: int) -> int:
    """How many lists open at the beginning, no more than the shape allows."""
    depth = 0
    for byte in raw:
        if byte == ord("["):
            depth += 1
        elif byte not in _BLANK:
            break
        if depth >= rank:
            break
    return max(1, depth)


@functools.lru_cache(256)
def _list_decoder(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    item: type = {"b": bool, "i": int, "u": int}.get(kind, float)
    for _ in range(depth):
        item = list[item]
    return msgspec.json.Decoder(item)
