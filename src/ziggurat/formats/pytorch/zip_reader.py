"""Files of ``torch.save``: a zip of one pickle and one entry per storage, stored as they are.

The pickle is read by :mod:`ziggurat.formats.pytorch.pickle_reader`, and values are views of the
mapped file; an entry's CRC is compared when a tensor is read whole.
"""

import dataclasses
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.formats.pytorch.names import (
    Name,
    NumpyArray,
    PickledObject,
    Storage,
    StorageType,
    TensorView,
)
from ziggurat.formats.pytorch.pickle_reader import read_pickle
from ziggurat.formats.tensors import LazyTensor, Tensors, printable

_LOCAL_HEADER = 30
_MOST_DEEP = 64
_UNSET = 0
"""The CRC of an entry for which ``torch.save`` was told to compute none."""


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file, read when they are touched.

    Raises:
        CheckpointError: there is no such file, or it is empty.
    """
    try:
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint file {path}", found=error, expected="a file with content"
        ) from None


def open_torch_zip(path: Path) -> Tensors:
    """The tensors of a ``.pt``, ``.pth`` or ``.bin`` file, under dotted names.

    Raises:
        CheckpointError: no file of ``torch.save``, or its pickle names what is not read.
    """
    return _opened(TorchZip(map_file(path), str(path)), path)


def _opened(archive: "TorchZip", path: Path) -> Tensors:
    tensors, metadata = archive.contents()
    return Tensors("pt", path, tensors, metadata)


@dataclasses.dataclass(frozen=True)
class _Entry:
    start: int
    size: int
    crc: int


class TorchZip:
    """One archive of ``torch.save`` within mapped bytes.

    Args:
        data: exactly the archive's bytes.
        where: its place, for errors.

    Raises:
        CheckpointError: no such archive; an entry is compressed, doubled, or outside the file.
    """

    def __init__(self, data: np.ndarray, where: str):
        self.where = printable(where)
        self._data = data
        self._checked: set[str] = set()
        self._entries: dict[str, _Entry] = {}
        self._root = ""
        try:
            with zipfile.ZipFile(io.BufferedReader(_Bytes(data), 1 << 16)) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            raise self._damaged(f"no whole zip archive ({error})") from None
        for info in infos:
            self._add(info)
        pickles = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise self._damaged(f"{len(pickles)} entries named data.pkl")
        self._root = pickles[0].removesuffix("data.pkl")
        order = self._root + "byteorder"
        if order in self._entries and self._bytes(order) != b"little":
            raise self._damaged("big-endian values", "little-endian values")

    def value(self) -> Any:
        """Saved value, with :class:`TensorView` for tensors."""
        return read_pickle(self._bytes(self._root + "data.pkl"), self.where)

    def contents(self) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
        """Tensors by dotted name, and the rest as JSON would have it.

        Raises:
            CheckpointError: two tensors of one name, or no end of nesting.
        """
        size = self._entries[self._root + "data.pkl"].size
        walk = _Walk(self, 10 * size + 1000)
        rest = walk.visit(self.value(), (), 0)
        if rest is _TENSOR or rest is None:
            rest = {}
        return walk.tensors, rest if isinstance(rest, dict) else {"": rest}

    def tensor(self, view: TensorView) -> LazyTensor:
        """A tensor of this archive, not yet read.

        Raises:
            CheckpointError: its storage is missing or of another size.
        """
        entry = self._entries.get(f"{self._root}data/{view.storage.key}")
        if entry is None or entry.size != view.storage.nbytes:
            found = "no such entry" if entry is None else f"{entry.size} bytes"
            raise self._damaged(f"{found} for storage {view.storage.key}",
                                f"{view.storage.nbytes} bytes")  # fmt: skip

        def read(where: tuple[slice, ...]) -> np.ndarray:
            whole = all(part == slice(0, n) for part, n in zip(where, view.shape))
            if whole:
                self._check(view.storage)
            size = view.dtype.itemsize
            if 0 in view.shape:
                return np.empty(view.shape, view.dtype)[(*where, ...)]
            strided = np.ndarray(
                view.shape,
                view.dtype,
                self._data[entry.start : entry.start + entry.size].data,
                view.offset * size,
                [step * size for step in view.strides],
            )
            return strided[(*where, ...)]

        return LazyTensor(view.shape, view.dtype, read)

    def _check(self, storage: Storage) -> None:
        """Compare a storage with its CRC, once."""
        entry = self._entries[f"{self._root}data/{storage.key}"]
        if storage.key in self._checked or entry.crc == _UNSET:
            return
        if zlib.crc32(self._data[entry.start : entry.start + entry.size].data) != entry.crc:
            raise self._damaged(f"another CRC for storage {storage.key}", "intact values")
        self._checked.add(storage.key)

    def _bytes(self, name: str) -> bytes:
        entry = self._entries[name]
        content = self._data[entry.start : entry.start + entry.size].tobytes()
        if entry.crc != _UNSET and zlib.crc32(content) != entry.crc:
            raise self._damaged(f"another CRC for {name}", "intact values")
        return content

    def _add(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        if name in self._entries:
            raise self._damaged(f"the entry {name!r} twice")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise self._damaged(f"an entry named {name!r}", "entries within one folder")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise self._damaged(f"the compressed or encrypted entry {name!r}", "stored entries")
        header = self._data[info.header_offset : info.header_offset + _LOCAL_HEADER].tobytes()
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise self._damaged(f"no header of entry {name!r}")
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = info.header_offset + _LOCAL_HEADER + lengths
        if info.file_size != info.compress_size or start + info.file_size > self._data.size:
            raise self._damaged(f"the entry {name!r} outside the file")
        self._entries[name] = _Entry(start, info.file_size, info.CRC)

    def _damaged(self, found: str, expected: str = "a file of torch.save") -> CheckpointError:
        return CheckpointError(
            f"torch file {self.where}", found=printable(found), expected=expected
        )


_TENSOR = object()


class _Walk:
    """Takes a saved value apart into tensors and the rest."""

    def __init__(self, archive: TorchZip, budget: int):
        self.archive = archive
        self.budget = budget
        self.tensors: dict[str, LazyTensor] = {}

    def visit(self, value: Any, path: tuple[str, ...], depth: int) -> Any:
        """The value as JSON has it, with ``_TENSOR`` for what went to ``tensors``."""
        self.budget -= 1
        if depth > _MOST_DEEP or self.budget < 0:
            raise CheckpointError(
                f"pickle in {self.archive.where}",
                found="values nested without end",
                expected=f"at most {_MOST_DEEP} levels",
            )
        if isinstance(value, TensorView):
            return self._take(path, self.archive.tensor(value))
        if isinstance(value, NumpyArray) and value.value is not None:
            return self._take(path, LazyTensor.of(value.value))
        if isinstance(value, PickledObject):
            value = value.fields
        if isinstance(value, dict):
            rest = {str(k): self.visit(v, (*path, str(k)), depth + 1) for k, v in value.items()}
            kept = {key: entry for key, entry in rest.items() if entry is not _TENSOR}
            return kept if kept or not rest else _TENSOR
        if isinstance(value, (list, tuple)):
            rest = [self.visit(v, (*path, str(i)), depth + 1) for i, v in enumerate(value)]
            if rest and all(entry is _TENSOR for entry in rest):
                return _TENSOR
            return [None if entry is _TENSOR else entry for entry in rest]
        return _plain(value)

    def _take(self, path: tuple[str, ...], tensor: LazyTensor) -> object:
        name = ".".join(path)
        if name in self.tensors:
            raise CheckpointError(
                f"torch file {self.archive.where}: tensor {printable(name)}", found="the name twice"
            )
        self.tensors[name] = tensor
        return _TENSOR


def _plain(value: Any) -> Any:
    if isinstance(value, Name):
        return value.text
    if isinstance(value, (np.dtype, StorageType, Storage)):
        return str(value)
    return None if isinstance(value, NumpyArray) else value


class _Bytes(io.RawIOBase):
    """Mapped bytes as a file."""

    def __init__(self, data: np.ndarray):
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self._data.size)[whence]
        if at < 0:
            raise OSError("a place before the start")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: part.size] = part.tobytes()
        self._at += part.size
        return part.size
