"""The manifest of a step directory: what it holds and the digest of every file.

``manifest.json`` is written last, before the directory gets its final name. It carries the tree of
every array item (so that arrays can be read without the code that made them), the size and
XXH3-128 digest of every other file, and a digest of itself. Orbax' own files have checksums for
their index only: flipped bytes in array data would restore silently.
"""

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from ziggurat.core.errors import CheckpointError

FORMAT = 1
"""Version of the layout of a step directory."""
MANIFEST = "manifest.json"
RECORDS = "records.json"
ARRAYS = "arrays"
RESERVED = frozenset({MANIFEST, RECORDS, ARRAYS})
"""Top-level names of a step directory that a caller's files may not take."""
_BLOCK = 1 << 24


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, cut short or altered."""


@dataclasses.dataclass(frozen=True)
class LeafRecord:
    """One array of an item: where it stands in the tree, and its type."""

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
    """Size in bytes and XXH3-128 digest (hex) of one file."""

    bytes: int
    xxh3_128: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a step directory holds."""

    step: int
    created: float
    """Seconds since 1970 (UTC)."""
    items: dict[str, tuple[LeafRecord, ...]]
    """Leaves of every array item, in tree order."""
    files: dict[str, FileRecord]
    """Every file but the manifest, by its path within the directory."""

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def files_of(self, items: Iterable[str]) -> list[str]:
        """Paths needed to restore ``items``: their arrays and all that is not arrays."""
        wanted = tuple(f"{ARRAYS}/{item}/" for item in items)
        others = tuple(f"{ARRAYS}/{item}/" for item in self.items)
        return [p for p in self.files if p.startswith(wanted) or not p.startswith(others)]


def digest_file(path: Path) -> str:
    """XXH3-128 of a file's content, as 32 hex digits."""
    digest, buffer = xxhash.xxh3_128(), bytearray(_BLOCK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def describe(directory: Path, step: int, items: dict[str, tuple[LeafRecord, ...]]) -> Manifest:
    """The manifest of all files now below ``directory``, each read back from disk once."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {
        path.relative_to(directory).as_posix(): FileRecord(path.stat().st_size, digest_file(path))
        for path in paths
    }
    return Manifest(step=step, created=time.time(), items=items, files=files)


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
        kind = DamagedError if directory.is_dir() else CheckpointError
        raise kind(
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
    """Name the first file that is missing or of another size; empty when there is none."""
    for name, record in manifest.files.items():
        try:
            size = (directory / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != record.bytes:
            return f"{name} has {size} bytes instead of {record.bytes}"
    return ""


def check_digests(directory: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Read the named files and compare them with their digests.

    Raises:
        DamagedError: a file is missing, has another size or other content; the text names it.
    """
    for name in names:
        record, path = manifest.files[name], directory / name
        try:
            size = path.stat().st_size
            if size != record.bytes:
                raise _damaged(path, f"{size} bytes", f"{record.bytes} bytes")
            found = digest_file(path)
        except OSError as error:
            raise _damaged(path, error.strerror or str(error), "a readable file") from None
        if found != record.xxh3_128:
            raise _damaged(path, f"digest {found}", record.xxh3_128)


def _damaged(path: Path, found: str, expected: str = "") -> DamagedError:
    fix = "restore an older step, or copy this file again from where it is intact"
    return DamagedError(f"damaged checkpoint file {path}", found=found, expected=expected, fix=fix)


def _encode(manifest: Manifest) -> str:
    body = {
        "format": FORMAT,
        "step": manifest.step,
        "created": manifest.created,
        "items": {
            item: [_leaf_to_plain(leaf) for leaf in leaves]
            for item, leaves in manifest.items.items()
        },
        "files": {name: dataclasses.asdict(file) for name, file in manifest.files.items()},
    }
    digest = xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
    return json.dumps({**body, "digest": digest}, indent=1) + "\n"


def _leaf_to_plain(leaf: LeafRecord) -> dict[str, Any]:
    plain = {"path": list(leaf.path), "shape": list(leaf.shape), "dtype": leaf.dtype}
    return plain | ({"prng": leaf.prng} if leaf.prng else {})


def _decode(body: dict[str, Any]) -> Manifest:
    items = {
        item: tuple(
            LeafRecord(tuple(e["path"]), tuple(e["shape"]), e["dtype"], e.get("prng"))
            for e in leaves
        )
        for item, leaves in body["items"].items()
    }
    files = {name: FileRecord(**entry) for name, entry in body["files"].items()}
    return Manifest(step=body["step"], created=body["created"], items=items, files=files)
