"""Writing files for PyTorch without PyTorch: the few pickle opcodes that ``torch.save`` uses for
tensors, and the zip around them. ``torch.load`` reads them with ``weights_only=True``.

>>> from ziggurat.formats.pytorch.pickle_reader import read_pickle
>>> read_pickle(encode({"size": PickledCall("torch.Size", ((2, 3),)), "n": [1, -1, 2**40]}), "here")
{'size': (2, 3), 'n': [1, -1, 1099511627776]}
"""

import dataclasses
import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ziggurat.core.errors import CheckpointError
from ziggurat.formats.pytorch.names import DTYPES, STORAGES

_ROOT = "archive"
_ALIGNMENT = 64
_LOCAL_HEADER = 30
_BLOCK = 1 << 26
_LARGE = 1 << 31
"""From this size on an entry has 64-bit lengths."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_STORAGE_OF = {dtype: storage for storage, dtype in STORAGES.items()}


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that the reader imports."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class PickledCall:
    """Pickled call ``name(*arguments)``, or a new object of that class with a state.

    Each is a key of its own, whatever it holds.
    """

    name: str
    arguments: tuple = ()
    state: Any = None


@dataclasses.dataclass(frozen=True)
class Persistent:
    """Something outside the pickle."""

    identifier: tuple


def encode(value: Any) -> bytes:
    """A pickle (protocol 2) of plain values and the classes above."""
    out = io.BytesIO()
    out.write(b"\x80\x02")
    _put(out, value)
    out.write(b".")
    return out.getvalue()


def _put(out: io.BytesIO, value: Any) -> None:
    if value is None or isinstance(value, bool):
        out.write(b"N" if value is None else b"\x88" if value else b"\x89")
    elif isinstance(value, int):
        short = -(1 << 31) <= value < 1 << 31
        out.write(b"J" + struct.pack("<i", value) if short else
                  b"\x8a\x08" + value.to_bytes(8, "little", signed=True))  # fmt: skip
    elif isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        out.write(b"X" + struct.pack("<I", len(data)) + data)
    elif isinstance(value, (tuple, list)):
        out.write(b"(" if isinstance(value, tuple) else b"](")
        for entry in value:
            _put(out, entry)
        out.write(b"t" if isinstance(value, tuple) else b"e")
    elif isinstance(value, dict):
        out.write(b"}(")
        for key, entry in value.items():
            _put(out, key)
            _put(out, entry)
        out.write(b"u")
    elif isinstance(value, Global):
        module, _, name = value.name.rpartition(".")
        out.write(f"c{module}\n{name}\n".encode())
    elif isinstance(value, Persistent):
        _put(out, value.identifier)
        out.write(b"Q")
    else:
        assert isinstance(value, PickledCall), value
        _put(out, Global(value.name))
        _put(out, value.arguments)
        out.write(b"R" if value.state is None else b"\x81")
        if value.state is not None:
            _put(out, value.state)
            out.write(b"b")


def type_name(where: str, dtype: np.dtype) -> str:
    """PyTorch's name of a type.

    Raises:
        CheckpointError: it has none.
    """
    name = _NAMES.get(dtype.newbyteorder("="))
    if name is None:
        raise CheckpointError(
            f"tensor {where}", found=f"type {dtype}", expected="one of " + ", ".join(DTYPES)
        )
    return name


def tensor_value(name: str, key: str, shape: Sequence[int], dtype: np.dtype) -> PickledCall:
    """The pickled form of a contiguous tensor that fills storage ``key``."""
    kind = type_name(name, dtype)
    count = int(np.prod(shape, dtype=np.int64))
    strides = tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))
    rest = (0, tuple(map(int, shape)), strides, False, PickledCall("collections.OrderedDict"))
    if kind in _STORAGE_OF:
        storage = Persistent(("storage", Global(f"torch.{_STORAGE_OF[kind]}"), key, "cpu", count))
        return PickledCall("torch._utils._rebuild_tensor_v2", (storage, *rest))
    untyped = Global("torch.storage.UntypedStorage")
    storage = Persistent(("storage", untyped, key, "cpu", count * dtype.itemsize))
    return PickledCall("torch._utils._rebuild_tensor_v3", (storage, *rest, Global(f"torch.{kind}")))


def write_archive(
    file: io.RawIOBase | io.BufferedIOBase, value: Any, storages: Mapping[str, Any]
) -> None:
    """Write a zip as ``torch.save`` does, at the start of ``file``.

    Args:
        file: open for writing and seekable.
        value: what ``torch.load`` shall return, as :func:`encode` takes it.
        storages: arrays, or lazy tensors, by storage key; each is asked for when it is written.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {"data.pkl": encode(value), "byteorder": b"little"}.items():
            _write_entry(archive, name, np.frombuffer(content, np.uint8))
        for key, array in storages.items():
            _write_entry(archive, f"data/{key}", raw_bytes(array))
        _write_entry(archive, "version", np.frombuffer(b"3\n", np.uint8))


def raw_bytes(value: Any) -> Shaped[np.ndarray, "n"]:
    """The bytes of an array in C order, little-endian."""
    array = np.asarray(value, order="C")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8)


def _write_entry(archive: zipfile.ZipFile, name: str, content: np.ndarray) -> None:
    """One entry whose data starts at a multiple of 64 bytes, so that it can be mapped."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", _EPOCH)
    large = content.nbytes >= _LARGE
    file = archive.fp
    assert file is not None
    start = file.tell() + _LOCAL_HEADER + len(info.filename) + (20 if large else 0) + 4
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as entry:
        for begin in range(0, content.nbytes, _BLOCK):
            entry.write(content[begin : begin + _BLOCK].data)


class Shifted(io.RawIOBase):
    """A file that begins where another one stands now."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self._origin = file.tell()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell() - self._origin

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + self._origin if whence == 0 else offset
        return self._file.seek(at, whence) - self._origin

    def write(self, data: Any) -> int:
        return self._file.write(data)


def write_torch_zip(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors as the dictionary that ``torch.load`` returns; one is in memory at a time."""
    keys = {name: str(index) for index, name in enumerate(tensors)}
    value = {
        name: tensor_value(name, keys[name], tensor.shape, np.dtype(tensor.dtype))
        for name, tensor in tensors.items()
    }
    with open(path, "wb") as file:
        write_archive(file, value, {keys[name]: tensor for name, tensor in tensors.items()})
