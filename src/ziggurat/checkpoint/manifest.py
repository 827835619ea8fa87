"""The manifest of a step directory: what it holds and the digest of every file.

``manifest.json`` is written last, before the directory gets its final name. It carries the tree of
every array item (so that arrays can be read without the code that made them), the size and
XXH3-128 digest of every other file, and a digest of itself. Orbax' own files have checksums for
their index only: flipped bytes in array data would restore silently.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from ziggurat.checkpoint.digests import THREADS, Known, digest_file, digest_files
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import JsonObject

FORMAT = 2
"""Version of the layout of a step directory; 1 had no metrics."""
MANIFEST = "manifest.json"
RECORDS = "records.json"
ARRAYS = "arrays"
RESERVED = frozenset({MANIFEST, RECORDS, ARRAYS})
"""Top-level names of a step directory that a caller's files may not take."""


class DamagedError(CheckpointError):
    """Error: a file of a checkpoint is missing, cut short or altered."""

    def __init__(self, what: str, **parts: Any):
        super().__init__(what, **parts)
        self.files: dict[str, str] = {}
        """Damage of each damaged file, by its path within the step directory."""


@dataclasses.dataclass(frozen=True)
class LeafRecord:
    """Record of one array of an item: its place in the tree, and its type."""

    path: tuple[str, ...]
    """Keys from the root of the item to the leaf."""
    shape: tuple[int, ...]
    dtype: str
    prng: str | None = None
    """Implementation of a typed PRNG key, whose words are stored as uint32."""

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def stored(self) -> bool:
        """Whether there is data on disk: arrays without elements have none."""
        return 0 not in self.shape


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """Record of one file: its size in bytes and its XXH3-128 digest (hex)."""

    bytes: int
    xxh3_128: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of a step directory, as ``manifest.json`` records it."""

    step: int
    created: float
    """Seconds since 1970 (UTC)."""
    items: dict[str, tuple[LeafRecord, ...]]
    """Leaves of every array item, in tree order."""
    files: dict[str, FileRecord]
    """Every file but the manifest, by its path within the directory."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics by which retention compares checkpoints, such as ``eval_loss``."""
    format: int = FORMAT

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def files_of(self, items: Iterable[str]) -> list[str]:
        """Paths needed to restore ``items``: their arrays and all that is not arrays."""
        wanted = tuple(f"{ARRAYS}/{item}/" for item in items)
        others = tuple(f"{ARRAYS}/{item}/" for item in self.items)
        return [p for p in self.files if p.startswith(wanted) or not p.startswith(others)]


def describe(
    directory: Path,
    step: int,
    items: dict[str, tuple[LeafRecord, ...]],
    metrics: Mapping[str, float] | None = None,
    known: Mapping[str, Known] | None = None,
) -> Manifest:
    """Make the manifest of all files now below ``directory``.

    Args:
        known: digests by path taken earlier; those of files that changed since are taken again.
    """
    paths = {path.relative_to(directory).as_posix(): path for path in _files_below(directory)}
    digests: dict[str, str] = {}
    for name, path in paths.items():
        earlier, now = (known or {}).get(name), path.stat()
        stamp = (now.st_size, now.st_ino, now.st_mtime_ns)
        if earlier and (earlier.bytes, earlier.inode, earlier.modified_ns) == stamp:
            digests[name] = earlier.xxh3_128
    rest = [name for name in paths if name not in digests]
    digests |= zip(rest, digest_files(paths[name] for name in rest), strict=True)
    files = {name: FileRecord(path.stat().st_size, digests[name]) for name, path in paths.items()}
    return Manifest(step, time.time(), items, files, dict(metrics or {}))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``; the caller syncs and commits the directory."""
    (directory / MANIFEST).write_text(_encode(manifest), encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` and check it against its own digest.

    Raises:
        CheckpointError: there is no checkpoint here, or it was written by a newer version.
        DamagedError: the manifest was altered or cut short.
    """
    path = directory / MANIFEST
    try:
        text = path.read_bytes().decode("utf-8")
        body = json.loads(text)
        version = body["format"]
    except FileNotFoundError:
        if directory.is_dir():
            raise _damaged(path, "no such file") from None
        raise CheckpointError(
            f"checkpoint {directory}", found=f"no {MANIFEST}", expected="a step directory"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"unreadable ({error})") from None
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"checkpoint {directory}",
            found=f"format {version}",
            expected=f"at most {FORMAT}",
            fix="update ziggurat",
        )
    try:
        manifest = _decode(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"unreadable ({error!r})") from None
    if _encode(manifest) != text:
        raise _damaged(path, "content that does not match its digest")
    return manifest


def check_sizes(directory: Path, manifest: Manifest) -> str:
    """Name of the first file that is missing or of another size; empty when there is none."""
    for name, record in manifest.files.items():
        try:
            size = (directory / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != record.bytes:
            return f"{name} has {size} bytes instead of {record.bytes}"
    return ""


def damage(directory: Path, manifest: Manifest, names: Iterable[str]) -> dict[str, str]:
    """Read the named files, several at a time, and tell what is wrong with each damaged one.

    A file among the arrays that the manifest does not know is damage too: Orbax might read it.
    """
    wanted = list(names)
    by_size = sorted(wanted, key=lambda name: manifest.files[name].bytes, reverse=True)
    with ThreadPoolExecutor(THREADS, "verify") as pool:
        checks = pool.map(lambda name: _damage_of(directory / name, manifest.files[name]), by_size)
        found = dict(zip(by_size, checks, strict=True))
    extra = (name for name in unlisted(directory, manifest) if name.startswith(f"{ARRAYS}/"))
    bad = {name: found[name] for name in wanted if found[name]}
    return bad | dict.fromkeys(extra, "a file that is not part of the checkpoint")


def check_digests(directory: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Read the named files and compare them with their digests.

    Raises:
        DamagedError: a file is missing, has another size or other content; the text names it.
    """
    found = damage(directory, manifest, names)
    if found:
        raise damaged_files(directory, found)


def damaged_files(directory: Path, found: Mapping[str, str]) -> DamagedError:
    """Build one error for all damaged files of a step directory."""
    name, what = next(iter(found.items()))
    more = f", and {len(found) - 1} more damaged files" if len(found) > 1 else ""
    return _damaged(directory / name, what + more, files=found)


def unlisted(directory: Path, manifest: Manifest) -> list[str]:
    """Files of a step directory that its manifest does not know; outside of the arrays nothing
    reads them."""
    names = (path.relative_to(directory).as_posix() for path in _files_below(directory))
    return [name for name in names if name != MANIFEST and name not in manifest.files]


def _files_below(directory: Path) -> list[Path]:
    found = [Path(root, name) for root, _, names in os.walk(directory) for name in names]
    return sorted(found)


def _damage_of(path: Path, record: FileRecord) -> str:
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return f"{size} bytes instead of {record.bytes}"
        found = digest_file(path)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"an unreadable file ({error.strerror or error})"
    return "" if found == record.xxh3_128 else f"digest {found} instead of {record.xxh3_128}"


def _damaged(path: Path, found: str, files: Mapping[str, str] | None = None) -> DamagedError:
    fix = "restore an older step, or run ziggurat checkpoints repair with an intact copy"
    error = DamagedError(f"damaged checkpoint file {path}", found=found, fix=fix)
    error.files = dict(files or {path.name: found})
    return error


def _encode(manifest: Manifest) -> str:
    body = {
        "format": manifest.format,
        "step": manifest.step,
        "created": manifest.created,
        "items": {
            item: [_leaf_to_plain(leaf) for leaf in leaves]
            for item, leaves in manifest.items.items()
        },
        "files": {name: dataclasses.asdict(file) for name, file in manifest.files.items()},
    }
    if manifest.format >= 2:
        body["metrics"] = manifest.metrics
    digest = xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
    return json.dumps({**body, "digest": digest}, indent=1) + "\n"


def _leaf_to_plain(leaf: LeafRecord) -> JsonObject:
    plain = {"path": list(leaf.path), "shape": list(leaf.shape), "dtype": leaf.dtype}
    return plain | ({"prng": leaf.prng} if leaf.prng else {})


def _decode(body: JsonObject) -> Manifest:
    items = {
        item: tuple(
            LeafRecord(tuple(e["path"]), tuple(e["shape"]), e["dtype"], e.get("prng"))
            for e in leaves
        )
        for item, leaves in body["items"].items()
    }
    files = {name: FileRecord(**entry) for name, entry in body["files"].items()}
    version = body["format"]
    metrics = body["metrics"] if version >= 2 else {}
    return Manifest(body["step"], body["created"], items, files, metrics, version)
