"""Opening, writing and converting checkpoints, whatever container they are in.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     file = write("pt", {"w": np.arange(3, dtype=np.int8)}, Path(folder, "a.pt"))
...     _ = convert(file, "safetensors", Path(folder, "a.safetensors"))
...     with open(Path(folder, "a.safetensors")) as tensors:
...         tensors.kind, tensors.read("w")
('safetensors', array([0, 1, 2], dtype=int8))
"""

import builtins
import contextlib
import fnmatch
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ziggurat.checkpoint.manifest import ARRAYS, MANIFEST, check_digests, read_manifest
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError, did_you_mean
from ziggurat.formats.orbax_tree import METADATA as ORBAX
from ziggurat.formats.orbax_tree import find_items, open_orbax, write_orbax
from ziggurat.formats.pytorch.distributed import (
    METADATA as DISTRIBUTED,
)
from ziggurat.formats.pytorch.distributed import open_distributed, write_distributed
from ziggurat.formats.pytorch.writer import write_torch_zip
from ziggurat.formats.pytorch.zip_reader import open_torch_zip
from ziggurat.formats.safetensors_files import SafetensorsDirectory, write_sharded
from ziggurat.formats.tensors import LazyTensor, Tensors

Kind = Literal["safetensors", "pt", "distcp", "orbax"]
"""Containers that can be written."""
KINDS: tuple[str, ...] = get_args(Kind)

Progress = Callable[[str, int, int], None]
"""Called before each tensor is written, with its name, the bytes written so far and all bytes."""

_KNOWN = "a file of torch.save, a DCP or Orbax directory, safetensors, a run or a step of a run"
_TORCH_BIN = "pytorch_model.bin"
_WHOLE_FILE = 1 << 62


def open(path: Path | str, item: str | None = None) -> Tensors:
    """Open a checkpoint by what it contains; no tensor is read before it is asked for.

    Args:
        path: a ``.pt``, ``.pth`` or ``.bin`` file of ``torch.save``; a directory of
            ``torch.distributed.checkpoint`` or Orbax; a safetensors file or directory; a run, or
            a step of one.
        item: the tree of an Orbax step or of our own, where there are several; ours: ``params``.

    Raises:
        CheckpointError: it is none of these, or damaged, or a pickle in it asks for more than
            tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"checkpoint {path}", found="no such file or directory", expected=_KNOWN
        )
    tensors = _open_file(path) if path.is_file() else _open_directory(path, item)
    if item is not None and tensors.kind not in ("orbax", "ziggurat"):
        raise CheckpointError(
            f"checkpoint {path}", found=f"kind {tensors.kind}", expected=f"one with item {item}"
        )
    return tensors


def write(
    kind: str,
    tensors: Mapping[str, Any],
    out: Path,
    *,
    progress: Progress = lambda name, done, total: None,
) -> Path:
    """Write tensors in another program's format; the output appears wholly or not at all.

    Args:
        kind: ``safetensors`` (a file if ``out`` ends so, else a directory in the Hugging Face
            layout), ``pt`` (a file for ``torch.load``), ``distcp`` (a directory for
            ``torch.distributed.checkpoint``) or ``orbax`` (a directory, nested at the dots).
        tensors: names to numpy or JAX arrays or lazy tensors; one is in memory at a time, but a
            shard of 5 GB (or the whole file) for safetensors, and all of them for orbax.
        out: new file or directory.
        progress: told of each tensor.

    Returns:
        ``out``.

    Raises:
        CheckpointError: unknown kind, ``out`` exists, nothing to write, or a type the kind lacks.
    """
    if kind not in KINDS:
        raise CheckpointError(
            f"checkpoint kind {kind!r}",
            found="an unknown kind",
            expected="one of " + ", ".join(KINDS),
            fix=did_you_mean(kind, KINDS),
        )
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"output {out}", found="it exists", expected="a new path")
    if not tensors:
        raise CheckpointError(f"output {out}", found="no tensors to write")
    watched = _watched(tensors, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "safetensors" and out.suffix == ".safetensors":
        with _temporary(out) as temporary:
            write_sharded(temporary, watched.items(), _WHOLE_FILE)
            os.replace(temporary / "model.safetensors", out)
    elif kind == "safetensors":
        with atomic.new_directory(out) as directory:
            write_sharded(directory, watched.items())
    elif kind == "distcp":
        with atomic.new_directory(out) as directory:
            write_distributed(directory, watched)
    elif kind == "pt":
        with _temporary(out) as temporary:
            write_torch_zip(temporary, watched)
            atomic.sync_path(temporary)
            os.replace(temporary, out)
    else:
        with _temporary(out) as temporary:
            write_orbax(temporary, watched)
            atomic.commit_directory(temporary, out)
    atomic.sync_path(out.parent)
    return out


def convert(
    source: Path | str,
    kind: str,
    out: Path,
    *,
    item: str | None = None,
    select: Sequence[str] = (),
    progress: Progress = lambda name, done, total: None,
) -> Path:
    """Write the tensors of one container into another, bit for bit and under the same names.

    Args:
        source: what :func:`open` takes.
        kind: what :func:`write` takes.
        out: new file or directory.
        item: as for :func:`open`.
        select: only tensors that match one of these patterns (``model.*``); default all.
        progress: told of each tensor.

    Raises:
        CheckpointError: ``source`` cannot be read, nothing matches, or ``out`` cannot be written.
    """
    with open(source, item) as tensors:
        chosen = {
            name: tensor
            for name, tensor in tensors.items()
            if not select or any(fnmatch.fnmatchcase(name, pattern) for pattern in select)
        }
        if tensors and not chosen:
            raise CheckpointError(
                f"checkpoint {source}",
                found=f"no tensor like {' or '.join(select)}",
                expected="names such as " + ", ".join(list(tensors)[:3]),
            )
        return write(kind, chosen, out, progress=progress)


def _open_file(path: Path) -> Tensors:
    try:
        with builtins.open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path}", found=error.strerror, expected="a readable file"
        ) from None
    if head[:4] == b"PK\x03\x04":
        return open_torch_zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return _safetensors(SafetensorsDirectory(path))
    found, fix = "content of another kind", ""
    if head[:4] == b"GGUF":
        found, fix = "a GGUF file", "use ziggurat import gguf"
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        found = "a bare pickle, perhaps of torch.save before PyTorch 1.6"
        fix = "load it where you trust it and save it anew"
    raise CheckpointError(f"checkpoint {path}", found=found, expected=_KNOWN, fix=fix)


def _open_directory(path: Path, item: str | None) -> Tensors:
    if (path / MANIFEST).is_file():
        return _open_step(path, item)
    if (path / DISTRIBUTED).is_file():
        return open_distributed(path)
    if (path / ORBAX).is_file() or find_items(path):
        return open_orbax(path, item)
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (path / name).is_file():
            return _safetensors(SafetensorsDirectory(path))
    if (path / f"{_TORCH_BIN}.index.json").is_file():
        return _open_torch_shards(path)
    single = [path / _TORCH_BIN] if (path / _TORCH_BIN).is_file() else []
    single = single or sorted(path.glob("*.safetensors"))
    if len(single) == 1:
        return _open_file(single[0])
    numbered = [e for e in path.iterdir() if e.name.isdigit() and find_items(e)]
    if numbered:
        return open_orbax(max(numbered, key=lambda entry: int(entry.name)), item)
    step = _newest_step(path)
    if step is not None:
        return _open_step(step, item)
    raise CheckpointError(
        f"checkpoint {path}",
        found=f"{len(single)} safetensors files" if single else "a directory of another kind",
        expected=_KNOWN,
        fix="name one of the files" if single else "",
    )


def _newest_step(path: Path) -> Path | None:
    from ziggurat.checkpoint.step_reader import StepReader

    for directory in (path / "checkpoints", path):
        if any(re.fullmatch(r"step_\d+", entry.name) for entry in directory.glob("step_*")):
            newest = StepReader(directory).latest()
            if newest is not None:
                return newest.path
    return None


def _open_step(path: Path, item: str | None) -> Tensors:
    """An item of our own step, its files compared with their digests first."""
    manifest = read_manifest(path)
    items = manifest.items
    wanted = item or (next(iter(items)) if len(items) == 1 else "params")
    if wanted not in items:
        raise CheckpointError(
            f"checkpoint {path}: item {wanted}",
            found="no such item",
            expected="one of " + ", ".join(items),
            fix=did_you_mean(wanted, items) or "name one",
        )
    leaves = items[wanted]
    check_digests(path, manifest, manifest.files_of([wanted]))
    stored = open_orbax(path / ARRAYS / wanted) if any(leaf.stored for leaf in leaves) else {}
    tensors = {
        leaf.name: stored[leaf.name]
        if leaf.stored
        else LazyTensor.of(np.zeros(leaf.shape, np.dtype(leaf.dtype)))
        for leaf in leaves
    }
    return Tensors("ziggurat", path, tensors, {"step": manifest.step})


def _open_torch_shards(path: Path) -> Tensors:
    index = path / f"{_TORCH_BIN}.index.json"
    try:
        homes = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {file: open_torch_zip(path / Path(file).name) for file in set(homes.values())}
        tensors = {name: files[file][name] for name, file in homes.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"index {index}", found=f"{error!r}", expected="each tensor and the file it is in"
        ) from None
    return Tensors("pt", path, tensors)


def _safetensors(files: SafetensorsDirectory) -> Tensors:
    tensors = {
        name: LazyTensor(
            info.shape, info.dtype, lambda where, name=name: files.read(name)[(*where, ...)]
        )
        for name, info in files.tensors.items()
    }
    return Tensors("safetensors", files.path, tensors, files.metadata)


def _watched(tensors: Mapping[str, Any], progress: Progress) -> dict[str, LazyTensor]:
    """Tensors that report to ``progress`` when they are read."""
    arrays = {n: t if hasattr(t, "dtype") else np.asarray(t) for n, t in tensors.items()}
    sizes = {n: int(np.prod(t.shape)) * np.dtype(t.dtype).itemsize for n, t in arrays.items()}
    total, done = sum(sizes.values()), 0

    def read(name: str) -> np.ndarray:
        nonlocal done
        progress(name, done, total)
        done += sizes[name]
        return np.asarray(arrays[name])

    return {
        name: LazyTensor(
            tuple(array.shape),
            np.dtype(array.dtype),
            lambda where, name=name: read(name)[(*where, ...)],
        )
        for name, array in arrays.items()
    }


@contextlib.contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A temporary name beside ``out``; whatever is left there, or beside it, is removed."""
    temporary = atomic.temporary_beside(out)
    try:
        yield temporary
    finally:
        for left in out.parent.glob(f"{temporary.name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
