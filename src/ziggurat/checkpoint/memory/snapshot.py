"""A snapshot: one process's part of a state as a header and plain bytes, and arrays from it again.

The header names every leaf of every item with its global shape and type, and every distinct shard
that this process holds with its place in the array and in the bytes. What is held twice (by several
devices of this process) is stored once. The bytes have one XXH3-128 digest for each block.

>>> arrays = {"params": {"w": np.arange(6.0).reshape(2, 3)}}
>>> header, sources = describe(arrays, {"seed": 1})
>>> content = memoryview(bytearray(header["bytes"]))
>>> copy_into(content, sources)
>>> header |= {"step": 1, "blocks": frames.block_digests(content)}
>>> assemble(header, content, {"params": {"w": np.zeros((2, 3))}})["params"]["w"][1]
array([3., 4., 5.])
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from ziggurat.checkpoint import leaves
from ziggurat.checkpoint.content import records_text
from ziggurat.checkpoint.manifest import DamagedError, LeafRecord
from ziggurat.checkpoint.memory import frames
from ziggurat.checkpoint.tier import UnsuitableError
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.core.pytrees import Leaf

Given = TypeVar("Given")
Made = TypeVar("Made")
_ALIGNMENT = 128
_THREADS = min(4, os.cpu_count() or 1)
Bounds = tuple[tuple[int, int], ...]
"""First and last-plus-one index in each dimension."""


@dataclasses.dataclass(frozen=True)
class ShardSource:
    """A shard, and the offset of its bytes in the snapshot."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    data: Any


def describe(
    arrays: Mapping[str, PyTree], records: JsonMapping
) -> tuple[JsonObject, list[ShardSource]]:
    """Build the header of this process's part (without digests yet), and the list of shards to
    copy.

    Raises:
        CheckpointError: a leaf is not an array, or a record is not JSON.
    """
    at, sources = 0, []
    items: dict[str, list[JsonObject]] = {}
    for item, tree in arrays.items():
        items[item] = []
        for record, value in leaves.describe(item, tree):
            stored, shards = np.dtype(value.dtype), []
            for bounds, data in _shards(value):
                shape = tuple(stop - start for start, stop in bounds)
                size = math.prod(shape) * stored.itemsize
                if size:
                    sources.append(ShardSource(at, shape, stored, data))
                    shards.append({"bounds": bounds, "offset": at, "bytes": size})
                    at += -(-size // _ALIGNMENT) * _ALIGNMENT
            leaf = dataclasses.asdict(record)
            items[item].append({"leaf": leaf, "stored": list(value.shape), "shards": shards})
    return {"items": items, "records": json.loads(records_text(records)), "bytes": at}, sources


def copy_into(view: memoryview, sources: Iterable[ShardSource]) -> None:
    """Copy shards from their devices to their places, with a few threads."""

    def copy(source: ShardSource) -> None:
        place = np.ndarray(source.shape, source.dtype, view, source.offset)
        np.copyto(place, np.asarray(source.data))

    in_threads(copy, sources)


def check(header: JsonMapping, content: memoryview) -> None:
    """Compare a snapshot's content with its digests.

    Raises:
        DamagedError: they differ; the text names the leaves.
    """
    found = frames.block_digests(content[: header["bytes"]])
    bad = [i for i, pair in enumerate(zip(found, header["blocks"])) if pair[0] != pair[1]]
    if bad or len(found) != len(header["blocks"]):
        names = [
            f"{item}.{'.'.join(entry['leaf']['path'])}"
            for item, entries in header["items"].items()
            for entry in entries
            if any(_touches(shard, block) for shard in entry["shards"] for block in bad)
        ]
        raise DamagedError(
            f"snapshot of step {header['step']} in memory",
            found="content that does not match its digests, in "
            + ", ".join(names[:3])
            + (f" or {len(names) - 3} more" if len(names) > 3 else ""),
            expected="what was saved",
        )


def assemble(
    header: JsonMapping,
    content: memoryview,
    like: Mapping[str, PyTree],
    *,
    cast: bool = False,
    partial: bool = False,
) -> dict[str, PyTree]:
    """Arrays in the structure, types and shardings of ``like``.

    Leaves with a sharding come back as ``jax.Array``, others as numpy arrays. Any sharding will do
    whose shards on this process's devices are made of what this part holds: with one process each
    one, with several the one that was saved or a finer one.

    Where shards are as they were saved, devices take them straight from ``content``, which must not
    change any more; a CPU device does not even copy them. Numpy arrays are copies.

    Raises:
        UnsuitableError: a leaf is missing, unexpected, of another shape or type, or in part with
            another process.
    """
    try:
        return {
            item: _assemble_item(header, content, item, tree, cast, partial)
            for item, tree in like.items()
        }
    except UnsuitableError:
        raise
    except CheckpointError as error:
        raise UnsuitableError(str(error)) from error


def in_threads(function: Callable[[Given], Made], values: Iterable[Given]) -> list[Made]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, values))


def _assemble_item(
    header: JsonMapping,
    content: memoryview,
    item: str,
    like: PyTree,
    cast: bool,
    partial: bool,
) -> PyTree:
    where = f"snapshot of step {header['step']}, {item}"
    entries = {_record(entry): entry for entry in header["items"].get(item, [])}
    wanted, structure = leaves.match(where, list(entries), like, cast=cast, partial=partial)

    def one(record: LeafRecord) -> Leaf:
        return _leaf(record, entries[record], content, wanted[record])

    # The largest first, so that threads end together. Typed keys may need a transfer that all
    # processes start in the same order: those come last, one by one.
    plain = [record for record in wanted if not record.prng]
    plain.sort(key=lambda record: -math.prod(record.shape))
    values = dict(zip(plain, in_threads(one, plain), strict=True))
    values |= {record: one(record) for record in wanted if record.prng}
    return structure.unflatten([values[record] for record in wanted])


def _leaf(record: LeafRecord, entry: JsonMapping, content: memoryview, target: Leaf) -> Leaf:
    shape = tuple(entry["stored"])
    whole = tuple((0, size) for size in shape)
    sharding = getattr(target, "sharding", None)
    if record.prng:
        words = _region(entry, content, whole, np.dtype(np.uint32))
        keys = jax.random.wrap_key_data(jax.numpy.asarray(words), impl=record.prng)
        return keys if sharding is None else jax.device_put(keys, sharding)
    stored, dtype = jax.numpy.dtype(record.dtype), np.dtype(target.dtype)
    if sharding is None:
        return _region(entry, content, whole, stored).astype(dtype, copy=False)
    regions: dict[Bounds, np.ndarray] = {}
    shards = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = _bounds(index, shape)
        if bounds not in regions:
            region = _stored(entry, content, bounds, stored)
            if region is None:
                region = _region(entry, content, bounds, stored)
            regions[bounds] = region.astype(dtype, copy=False)
        shards.append(jax.device_put(regions[bounds], device))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _stored(
    entry: JsonMapping, content: memoryview, wanted: Bounds, dtype: np.dtype
) -> np.ndarray | None:
    """A shard as it lies in the snapshot, if this one was saved."""
    for shard in entry["shards"]:
        if _pairs(shard["bounds"]) == wanted:
            shape = tuple(stop - start for start, stop in wanted)
            view = np.ndarray(shape, dtype, content, shard["offset"])
            view.flags.writeable = False
            return view
    return None


def _region(entry: JsonMapping, content: memoryview, wanted: Bounds, dtype: np.dtype) -> np.ndarray:
    """A new array of one region, put together from the shards that overlap it."""
    shape = tuple(stop - start for start, stop in wanted)
    result, filled = _empty(shape, dtype), 0
    for shard in entry["shards"]:
        bounds = _pairs(shard["bounds"])
        stored = np.ndarray(tuple(b - a for a, b in bounds), dtype, content, shard["offset"])
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(bounds, wanted, strict=True)]
        if all(start < stop for start, stop in common):
            there = tuple(slice(s - a, e - a) for (s, e), (a, _) in zip(common, wanted))
            here = tuple(slice(s - a, e - a) for (s, e), (a, _) in zip(common, bounds))
            result[there] = stored[here]
            filled += math.prod(stop - start for start, stop in common)
    if filled != result.size:
        raise UnsuitableError(
            f"snapshot: leaf {'.'.join(entry['leaf']['path'])}",
            found="a part of it with another process",
            expected="the mesh that it was saved from",
        )
    return result


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Aligned such that a CPU device takes it over without another copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _shards(value: Leaf) -> list[tuple[Bounds, Leaf]]:
    """Distinct shards of an array that this process holds."""
    if not isinstance(value, jax.Array):
        return [(tuple((0, size) for size in value.shape), value)]
    distinct: dict[Bounds, Leaf] = {}
    for shard in value.addressable_shards:
        distinct.setdefault(_bounds(shard.index, value.shape), shard.data)
    return list(distinct.items())


def _bounds(index: Sequence[slice], shape: Sequence[int]) -> Bounds:
    return tuple(place.indices(size)[:2] for place, size in zip(index, shape, strict=True))


def _pairs(bounds: Iterable[Iterable[int]]) -> Bounds:
    return tuple((start, stop) for start, stop in bounds)


def _record(entry: JsonMapping) -> LeafRecord:
    leaf = entry["leaf"]
    return LeafRecord(tuple(leaf["path"]), tuple(leaf["shape"]), leaf["dtype"], leaf["prng"])


def _touches(shard: JsonMapping, block: int) -> bool:
    end = shard["offset"] + shard["bytes"]
    return shard["offset"] < (block + 1) * frames.BLOCK and end > block * frames.BLOCK
