"""How two checkpoints differ: leaf by leaf, record by record, file by file."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ziggurat.checkpoint import array_store
from ziggurat.checkpoint.manifest import ARRAYS, LeafRecord, Manifest
from ziggurat.checkpoint.steps import read_records, verify_step
from ziggurat.core.json_types import Json, JsonObject

_BATCH_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class LeafDifference:
    """A leaf that differs between two checkpoints."""

    item: str
    leaf: str
    what: str
    """``only in the first``, ``only in the second``, ``shape``, ``type`` or ``values``."""
    first: str = ""
    """Shape or type in the first."""
    second: str = ""
    max_absolute: float | None = None
    """Largest difference of two elements; of leaves of one shape."""
    relative_l2: float | None = None
    """``||a - b|| / ||a||``; None where a is zero everywhere."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Differences between two checkpoints."""

    leaves: list[LeafDifference]
    records: dict[str, tuple[Json, Json]]
    """Values by dotted name, first and second; None where there is none."""
    files: dict[str, str]
    """``only in the first``, ``only in the second`` or ``content`` by name."""

    def __bool__(self) -> bool:
        return bool(self.leaves or self.records or self.files)


def difference(first: Path, second: Path) -> Difference:
    """Compare two step directories; both are verified.

    Raises:
        CheckpointError: one of them is not a checkpoint.
        DamagedError: one of them is damaged.
    """
    manifests = verify_step(first), verify_step(second)
    leaves: list[LeafDifference] = []
    for item in sorted({item for manifest in manifests for item in manifest.items}):
        leaves += _compare_item(item, (first, second), manifests)
    records = flat(read_records(first, verify=False)), flat(read_records(second, verify=False))
    changed = {
        name: (records[0].get(name), records[1].get(name))
        for name in sorted(records[0].keys() | records[1].keys())
        if name not in records[0] or name not in records[1] or records[0][name] != records[1][name]
    }
    return Difference(leaves, changed, _compare_files(*manifests))


def flat(value: Json, name: str = "") -> JsonObject:
    """Leaves of a JSON value by dotted name.

    >>> flat({"data": {"next": 3}, "mix": [1, 2]})
    {'data.next': 3, 'mix.0': 1, 'mix.1': 2}
    """
    entries: list[tuple[str, Json]]
    if isinstance(value, dict) and value:
        entries = list(value.items())
    elif isinstance(value, list) and value:
        entries = [(str(index), entry) for index, entry in enumerate(value)]
    else:
        return {name: value} if name else {}
    found: JsonObject = {}
    for key, entry in entries:
        found |= flat(entry, f"{name}.{key}" if name else key)
    return found


def compare(
    a: Shaped[np.ndarray, "..."], b: Shaped[np.ndarray, "..."]
) -> tuple[float, float | None]:
    """Largest absolute and relative L2 difference of two arrays of one shape, in float64.

    Elements that are equal, NaN in both included, count as 0; NaN in one of them as infinity.

    >>> compare(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    (0.5, 0.1)
    """
    x, y = (_as_float(value).reshape(-1) for value in (a, b))
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore", over="ignore"):
        delta = np.where(same, 0.0, np.abs(x - y))
    delta = np.where(np.isnan(delta), math.inf, delta)
    largest = float(delta.max(initial=0.0))
    norm = float(np.linalg.norm(np.nan_to_num(x, posinf=0.0, neginf=0.0)))
    size = float(np.linalg.norm(delta))
    return largest, size / norm if norm else None


def _as_float(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind == "c":
        return value.astype(np.complex128).view(np.float64)
    return value.astype(np.float64)


def _compare_item(
    item: str, paths: tuple[Path, Path], manifests: tuple[Manifest, Manifest]
) -> Iterator[LeafDifference]:
    a, b = ({leaf.name: leaf for leaf in manifest.items.get(item, ())} for manifest in manifests)
    both = []
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in b:
            yield LeafDifference(item, name, "only in the first", _shown(a[name]))
        elif name not in a:
            yield LeafDifference(item, name, "only in the second", second=_shown(b[name]))
        elif a[name].shape != b[name].shape or a[name].prng != b[name].prng:
            yield LeafDifference(item, name, "shape", _shown(a[name]), _shown(b[name]))
        else:
            both.append(name)
    for names in _batches(both, a):
        x = _read(paths[0], item, [a[name] for name in names], len(names) == len(a))
        y = _read(paths[1], item, [b[name] for name in names], len(names) == len(b))
        for name, one, other in zip(names, x, y, strict=True):
            if one.dtype == other.dtype and one.tobytes() == other.tobytes():
                continue
            largest, relative = compare(one, other)
            if a[name].dtype != b[name].dtype:
                shown = a[name].dtype, b[name].dtype
                yield LeafDifference(item, name, "type", *shown, largest, relative)
            else:
                yield LeafDifference(item, name, "values", "", "", largest, relative)


def _batches(names: Sequence[str], leaves: Mapping[str, LeafRecord]) -> Iterator[list[str]]:
    """Leaves that are read at once: as many as fit into a bounded amount of memory."""
    batch: list[str] = []
    size = 0
    for name in names:
        count = 8 * math.prod(leaves[name].shape)
        if batch and size + count > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += count
    if batch:
        yield batch


def _read(path: Path, item: str, leaves: Sequence[LeafRecord], whole: bool) -> list[np.ndarray]:
    values = array_store.read(path.absolute(), item, dict.fromkeys(leaves), whole=whole)
    return [np.asarray(values[leaf]) for leaf in leaves]


def _compare_files(first: Manifest, second: Manifest) -> dict[str, str]:
    def others(manifest: Manifest) -> dict[str, str]:
        skipped = (f"{ARRAYS}/", "records.json")
        return {
            name: file.xxh3_128
            for name, file in manifest.files.items()
            if not name.startswith(skipped)
        }

    a, b = others(first), others(second)
    found = {}
    for name in sorted(a.keys() | b.keys()):
        if name not in b:
            found[name] = "only in the first"
        elif name not in a:
            found[name] = "only in the second"
        elif a[name] != b[name]:
            found[name] = "content"
    return found


def _shown(leaf: LeafRecord) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
