"""PyTorch's distributed checkpoints (DCP, of FSDP and TorchTitan): a directory of ``.distcp`` files
with chunks of tensors, and ``.metadata`` that says where each chunk stands.

``.metadata`` is a pickle and each chunk a small file of ``torch.save``; both go through
:mod:`ziggurat.formats.pytorch.pickle_reader`.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.formats.pytorch.names import PickledObject, TensorView, UnlistedGlobal, sizes_of
from ziggurat.formats.pytorch.pickle_reader import read_pickle
from ziggurat.formats.pytorch.writer import (
    Global,
    PickledCall,
    Shifted,
    encode,
    tensor_value,
    type_name,
    write_archive,
)
from ziggurat.formats.pytorch.zip_reader import TorchZip, map_file
from ziggurat.formats.tensors import LazyTensor, Tensors, printable

_log = logging.getLogger(__name__)

METADATA = ".metadata"
_DATA = "__0_0.distcp"
_MODULE = "torch.distributed.checkpoint"
_Place = tuple[str, tuple[int, ...] | None]


def open_distributed(path: Path) -> Tensors:
    """The tensors of a checkpoint directory, each assembled from its chunks when it is read.

    Raises:
        CheckpointError: no such checkpoint, it is damaged, or it uses what is not read.
    """
    checkpoint = _Checkpoint(path)
    tensors = {}
    others = []
    for name, entry in checkpoint.entries.items():
        if _kind(entry) == "TensorStorageMetadata":
            tensors[name] = checkpoint.tensor(name, entry)
        else:
            others.append(name)
    return Tensors("distcp", path, tensors, lambda: checkpoint.values(others))


@dataclasses.dataclass(frozen=True)
class _Chunk:
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def within(self, shape: tuple[int, ...]) -> bool:
        return len(self.offsets) == len(self.sizes) == len(shape) and all(
            o + n <= whole for o, n, whole in zip(self.offsets, self.sizes, shape)
        )

    @property
    def count(self) -> int:
        return math.prod(self.sizes)


class _Checkpoint:
    def __init__(self, path: Path):
        self.path = path
        self._maps: dict[str, np.ndarray] = {}
        where = str(path / METADATA)
        root = read_pickle(map_file(path / METADATA).tobytes(), where)
        if not isinstance(root, PickledObject) or _kind(root) != "Metadata":
            raise CheckpointError(
                f"{where}", found=type(root).__name__, expected="metadata of a DCP checkpoint"
            )
        self.entries: dict[str, Any] = self._fields(root, "state_dict_metadata", dict)
        self._places: dict[_Place, PickledObject] = self._fields(root, "storage_data", dict)
        if not all(isinstance(name, str) for name in self.entries):
            raise self._damaged("a tensor whose name is no text")

    def tensor(self, name: str, entry: PickledObject) -> LazyTensor:
        """A tensor whose chunks fill it, each once."""
        shape = self._sizes(entry, "size")
        properties = self._fields(entry, "properties", PickledObject)
        dtype = (properties.state or (properties.fields.get("dtype"),))[0]
        if not isinstance(dtype, np.dtype):
            raise self._damaged(f"tensor {name} without a type that NumPy can hold")
        chunks = [
            _Chunk(self._sizes(chunk, "offsets"), self._sizes(chunk, "sizes"))
            for chunk in self._fields(entry, "chunks", list)
        ]
        if sum(chunk.count for chunk in chunks) != math.prod(shape) or not all(
            chunk.within(shape) for chunk in chunks
        ):
            raise self._damaged(f"chunks of tensor {name} that do not fill its shape {shape}")
        places = [(chunk, self._place(name, chunk)) for chunk in chunks]

        def read(where: tuple[slice, ...]) -> np.ndarray:
            self._check_disjoint(name, chunks)
            if len(places) == 1:
                return self._chunk(name, *places[0], dtype).read(where)
            parts = []
            for chunk, place in places:
                bounds = [
                    (max(part.start, o), min(part.stop, o + n))
                    for part, o, n in zip(where, chunk.offsets, chunk.sizes)
                ]
                if all(start < stop for start, stop in bounds):
                    here = tuple(slice(a - o, b - o) for (a, b), o in zip(bounds, chunk.offsets))
                    there = tuple(
                        slice(a - part.start, b - part.start) for (a, b), part in zip(bounds, where)
                    )
                    parts.append((there, self._chunk(name, chunk, place, dtype).read(here)))
            out = np.empty([part.stop - part.start for part in where], dtype)
            for there, values in parts:
                out[there] = values
            return out

        return LazyTensor(shape, dtype, read)

    def values(self, names: list[str]) -> dict[str, Any]:
        """Entries that are no tensors; one that is refused is left out with a warning."""
        found = {}
        for name in names:
            try:
                found[name] = self._archive(name, self._find((name, None))).contents()[1]
            except CheckpointError as error:
                _log.warning("%s: left out the value %s: %s", self.path, printable(name), error)
        return {name: one.get("", one) for name, one in found.items()}

    def _chunk(self, name: str, chunk: _Chunk, place: PickledObject, dtype: np.dtype) -> LazyTensor:
        archive = self._archive(name, place)
        view = archive.value()
        expected = chunk.sizes, dtype
        if not isinstance(view, TensorView) or (view.shape, view.dtype) != expected:
            raise self._damaged(
                f"another tensor than {METADATA} says for {name} at {chunk.offsets}"
            )
        if chunk.count * dtype.itemsize > view.storage.nbytes:
            raise self._damaged(f"{name} at {chunk.offsets} over a smaller storage")
        return archive.tensor(view)

    def _place(self, name: str, chunk: _Chunk) -> PickledObject:
        return self._find((name, chunk.offsets))

    def _find(self, key: _Place) -> PickledObject:
        place = self._places.get(key)
        if place is None:
            raise self._damaged(f"no place for {key[0]} at {key[1]}")
        if place.fields.get("transform_descriptors"):
            raise self._damaged(
                f"{key[0]} behind {place.fields['transform_descriptors']}", "untransformed data"
            )
        return place

    def _archive(self, name: str, place: PickledObject) -> TorchZip:
        file = self._fields(place, "relative_path", str)
        offset, length = self._fields(place, "offset", int), self._fields(place, "length", int)
        if file not in self._maps:
            parts = PurePosixPath(file).parts
            if not parts or file.startswith("/") or ".." in parts or "\\" in file:
                raise self._damaged(f"file {file!r} for {name}", "a file of this directory")
            self._maps[file] = map_file(self.path / file)
        data = self._maps[file]
        if offset < 0 or length <= 0 or offset + length > data.size:
            raise self._damaged(
                f"{name} at bytes {offset} to {offset + length} of {file}, which has {data.size}"
            )
        return TorchZip(data[offset : offset + length], f"{self.path / file}, {name}")

    def _check_disjoint(self, name: str, chunks: list[_Chunk]) -> None:
        chunks = [chunk for chunk in chunks if chunk.count]
        if len(chunks) < 2:
            return
        starts = np.array([chunk.offsets for chunk in chunks]).reshape(len(chunks), -1)
        stops = starts + np.array([chunk.sizes for chunk in chunks]).reshape(len(chunks), -1)
        for i in range(len(chunks) - 1):
            meet = (starts[i] < stops[i + 1 :]) & (starts[i + 1 :] < stops[i])
            if meet.all(axis=1).any():
                raise self._damaged(f"chunks of tensor {name} that overlap")

    def _fields(self, record: Any, key: str, kind: type) -> Any:
        value = record.fields.get(key) if isinstance(record, PickledObject) else None
        if not isinstance(value, kind):
            raise self._damaged(f"no {key} of type {kind.__name__} in {METADATA}")
        return value

    def _sizes(self, record: Any, key: str) -> tuple[int, ...]:
        try:
            return sizes_of(self._fields(record, key, tuple))
        except UnlistedGlobal as error:
            raise self._damaged(f"{key} with {error}") from None

    def _damaged(self, found: str, expected: str = "a whole checkpoint") -> CheckpointError:
        return CheckpointError(
            f"distributed checkpoint {self.path}", found=printable(found), expected=expected
        )


def _kind(record: Any) -> str:
    return record.name.rpartition(".")[2] if isinstance(record, PickledObject) else ""


def write_distributed(directory: Path, tensors: Mapping[str, Any]) -> None:
    """Fill a directory that ``torch.distributed.checkpoint`` loads; one tensor is in memory at a
    time."""
    described, places = {}, {}
    with open(directory / _DATA, "wb") as file:
        for name, tensor in tensors.items():
            shape, dtype = tuple(map(int, tensor.shape)), np.dtype(tensor.dtype)
            start = file.tell()
            value = tensor_value(name, "0", shape, dtype)
            write_archive(Shifted(file), value, {"0": tensor})
            zeros = _size((0,) * len(shape))
            described[name] = _record("metadata.TensorStorageMetadata", {
                "properties": _record("metadata.TensorProperties", _properties(name, dtype)),
                "size": _size(shape),
                "chunks": [_record("metadata.ChunkStorageMetadata",
                                   {"offsets": zeros, "sizes": _size(shape)})],
            })  # fmt: skip
            index = _record("metadata.MetadataIndex", {"fqn": name, "offset": zeros, "index": 0})
            info = {"relative_path": _DATA, "offset": start, "length": file.tell() - start}
            places[index] = _record("filesystem._StorageInfo", info)
    metadata = _record("metadata.Metadata", {
        "state_dict_metadata": described,
        "planner_data": {name: (name,) for name in tensors},
        "storage_data": places,
        "storage_meta": None,
        "version": "1.0.0",
    })  # fmt: skip
    (directory / METADATA).write_bytes(encode(metadata))


def _properties(name: str, dtype: np.dtype) -> tuple:
    layout = PickledCall("torch.serialization._get_layout", ("torch.strided",))
    memory_format = PickledCall(f"{_MODULE}.metadata._MEM_FORMAT_ENCODING", (0,))
    return Global(f"torch.{type_name(name, dtype)}"), layout, False, memory_format, False


def _size(sizes: tuple[int, ...]) -> PickledCall:
    return PickledCall("torch.Size", (sizes,))


def _record(name: str, state: Any) -> PickledCall:
    return PickledCall(f"{_MODULE}.{name}", (), state)
