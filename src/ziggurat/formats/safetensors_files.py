"""Safetensors directories in the Hugging Face layout: one file, or shards with an index.

Reading maps files into memory and touches a tensor's bytes only when that tensor is read.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     files = write_sharded(Path(folder), [("a", np.ones(2)), ("b", np.zeros(3))], 16)
...     reader = SafetensorsDirectory(Path(folder))
...     [file.name for file in files[:2]], reader.tensors["b"].shape, reader.read("a")
(['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'], (3,), array([1., 1.]))
"""

import dataclasses
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError, did_you_mean

_DTYPES: dict[str, np.dtype] = {
    code: np.dtype(kind)
    for code, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "C64": np.complex64,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
"""Type codes of the format that numpy (with ml_dtypes) can hold."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one tensor stands, known without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    start: int
    """First byte within the file."""
    bytes: int


PYTORCH_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files in which models were published before safetensors; they are pickles."""


class SafetensorsDirectory:
    """The tensors of a model directory, read one at a time.

    Args:
        path: a directory with ``<stem>.safetensors`` or ``<stem>.safetensors.index.json``, or one
            safetensors file.
        stem: name of the files before the extension; ``model`` for Hugging Face models.

    Raises:
        CheckpointError: a file is missing, truncated or not safetensors, or the index names a
            tensor that its shard does not hold. All headers are checked here.
    """

    mapped = True
    """Slicing what :meth:`read` gives reads that part only."""

    def __init__(self, path: Path, stem: str = "model"):
        self.path = Path(path)
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._maps: dict[Path, np.ndarray] = {}
        index = self.path / f"{stem}.safetensors.index.json"
        single = self.path if self.path.is_file() else self.path / f"{stem}.safetensors"
        if single.is_file():
            self.tensors, self.metadata = _read_header(single)
        elif index.is_file():
            self._read_shards(index)
        else:
            raise self._missing(f"{single.name} or {index.name}", self.path / f"{stem}.safetensors")

    def _missing(self, expected: str, output: Path) -> CheckpointError:
        """The error for a path without safetensors: beside PyTorch's files, how to convert them."""
        found = "none" if self.path.exists() else "no such file or directory"
        fix = "check the path"
        pytorch = [name for name in PYTORCH_FILES if (self.path / name).is_file()]
        if pytorch:
            found = f"none, but {pytorch[0]}"
            command = f"ziggurat export weights {self.path} --to safetensors --output {output}"
            fix = f"convert it: {command}"
        return CheckpointError(
            f"safetensors in {self.path}", found=found, expected=expected, fix=fix
        )

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def info(self, name: str) -> TensorInfo:
        """Shape, type and place of a tensor.

        Raises:
            CheckpointError: no tensor of this name.
        """
        if name not in self.tensors:
            raise CheckpointError(
                f"safetensors {self.path}: tensor {name}",
                found="no such tensor",
                expected=f"one of {len(self.tensors)} tensors",
                fix=did_you_mean(name, self.tensors),
            )
        return self.tensors[name]

    def dtype_of(self, name: str) -> np.dtype:
        """Type of a tensor."""
        return self.info(name).dtype

    def file_of(self, name: str) -> str:
        """Name of the file that a tensor is in."""
        return self.info(name).file.name

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """One tensor as a read-only array backed by the mapped file."""
        info = self.info(name)
        return self._bytes(info).view(info.dtype).reshape(info.shape)

    def _bytes(self, info: TensorInfo) -> np.ndarray:
        """A tensor's bytes in the mapped file."""
        if info.file not in self._maps:
            self._maps[info.file] = np.asarray(np.memmap(info.file, np.uint8, mode="r"))
        return self._maps[info.file][info.start : info.start + info.bytes]

    def release(self) -> None:
        """Unmap what no array views any more, so that pages read do not count as this process's
        memory; the next read maps again."""
        self._maps.clear()

    def _read_shards(self, index: Path) -> None:
        try:
            weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(weights.values()))
            bad = [name for name in shards if Path(name).name != name]
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise CheckpointError(
                f"index {index}", found=f"{error!r}", expected='JSON with a "weight_map" of files'
            ) from None
        if bad:
            raise CheckpointError(
                f"index {index}", found=f"file {bad[0]!r}", expected="files in the same directory"
            )
        found: dict[str, dict[str, TensorInfo]] = {}
        for shard in shards:
            file = index.parent / shard
            first = next(name for name, home in weights.items() if home == shard)
            if not file.is_file():
                raise CheckpointError(
                    f"shard {file}",
                    found="no such file",
                    expected=f"tensor {first} and others, as {index.name} says",
                    fix="copy the missing file",
                )
            found[shard], metadata = _read_header(file)
            self.metadata |= metadata
        for name, shard in weights.items():
            if name not in found[shard]:
                raise CheckpointError(
                    f"tensor {name}",
                    found=f"it is not in {index.parent / shard}",
                    expected=f"there, as {index.name} says",
                    fix="copy that file again",
                )
            self.tensors[name] = found[shard][name]
        for shard, tensors in found.items():
            for name, info in tensors.items():
                self._add_unnamed(index, shard, name, info)

    def _add_unnamed(self, index: Path, shard: str, name: str, info: TensorInfo) -> None:
        """A tensor of a shard that the index does not place there: transformers loads whole files,
        so it counts, and must not contradict the one that the index names."""
        known = self.tensors.setdefault(name, info)
        if known.file == info.file:
            return
        alike = (known.dtype, known.shape) == (info.dtype, info.shape)
        if not alike or not np.array_equal(self._bytes(known), self._bytes(info)):
            raise CheckpointError(
                f"tensor {name}",
                found=f"other values in {index.parent / shard} than in {known.file}",
                expected=f"one tensor of this name, as {index.name} says",
                fix="copy the files of one version of the model",
            )


def write_sharded(
    directory: Path,
    tensors: Iterable[tuple[str, Any]],
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> list[Path]:
    """Write tensors in order as ``<stem>.safetensors``, or as shards with an index.

    Holds one shard in memory at a time. All data is on disk under temporary names before any file
    gets its own; files of an earlier export are then replaced, the index last, so that a reader
    finds the old tensors, the new ones, or an error that names a missing file.

    Args:
        directory: is made if missing; other files in it are left alone.
        tensors: pairs of name and array (numpy or jax), consumed once.
        max_shard_bytes: largest file, but for a tensor larger than this.
        metadata: text pairs for each header; default ``{"format": "pt"}``.

    Returns:
        The files written; with several shards the index is the last.

    Raises:
        CheckpointError: no tensors, a name given twice, or a type the format lacks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    header = dict({"format": "pt"} if metadata is None else metadata)
    homes: dict[str, int] = {}
    temporaries: list[Path] = []
    total = 0
    try:
        for shard in _shards(tensors, max_shard_bytes, homes):
            temporaries.append(atomic.temporary_beside(directory / f"{stem}.safetensors"))
            _write_file(temporaries[-1], shard, header)
            homes |= dict.fromkeys(shard, len(temporaries) - 1)
            total += sum(array.nbytes for array in shard.values())
        if not homes:
            raise CheckpointError(f"safetensors in {directory}", found="no tensors to write")
        return _name_files(directory, stem, temporaries, homes, total)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _shards(
    tensors: Iterable[tuple[str, Any]], limit: int, seen: Mapping[str, int]
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, value in tensors:
        array = np.asarray(value, order="C")
        where = f"safetensors tensor {name}"
        if name in seen or name in shard:
            raise CheckpointError(where, found="the name twice", expected="each name once")
        if array.dtype.newbyteorder("=") not in _DTYPES.values():
            known = ", ".join(str(dtype) for dtype in _DTYPES.values())
            raise CheckpointError(where, found=f"type {array.dtype}", expected=f"one of {known}")
        if shard and size + array.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    if shard:
        yield shard


def _write_file(path: Path, shard: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    from safetensors.numpy import save_file

    save_file(shard, path, metadata=metadata)
    path.chmod(0o644)  # the library makes it readable by its owner only
    atomic.sync_path(path)


def _name_files(
    directory: Path, stem: str, temporaries: list[Path], homes: Mapping[str, int], total: int
) -> list[Path]:
    """Remove an earlier export and give the new files their names, the index last."""
    index = directory / f"{stem}.safetensors.index.json"
    old_shard = re.compile(re.escape(stem) + r"-\d{5,}-of-\d{5,}\.safetensors")
    index.unlink(missing_ok=True)
    for entry in directory.iterdir():
        if old_shard.fullmatch(entry.name):
            entry.unlink()
    count = len(temporaries)
    if count == 1:
        os.replace(temporaries[0], directory / f"{stem}.safetensors")
        atomic.sync_path(directory)
        return [directory / f"{stem}.safetensors"]
    (directory / f"{stem}.safetensors").unlink(missing_ok=True)
    names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for temporary, name in zip(temporaries, names, strict=True):
        os.replace(temporary, directory / name)
    body = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[home] for name, home in homes.items()},
    }
    atomic.write_file(index, json.dumps(body, indent=2) + "\n")
    return [*(directory / name for name in names), index]


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key stands twice; the json module would take the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice} twice")
    return found


def _read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """All tensors of one file, after the safetensors library has checked header and size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length), object_pairs_hook=_each_once)
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise CheckpointError(
            f"safetensors file {file}",
            found=str(error).partition("\n")[0],
            expected="a whole safetensors file",
            fix="copy that file again",
        ) from None
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"safetensors file {file}: tensor {name}",
                found=f"type {entry['dtype']}",
                expected="one of " + ", ".join(_DTYPES),
            )
        begin, end = entry["data_offsets"]
        tensors[name] = TensorInfo(
            tuple(entry["shape"]), _DTYPES[entry["dtype"]], file, 8 + length + begin, end - begin
        )
    return tensors, metadata
