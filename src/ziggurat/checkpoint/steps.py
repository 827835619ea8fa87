"""Reading one step directory, with or without the code that made it.

Layout of ``step_00000050/``::

    manifest.json      trees, metrics, sizes, digests (see ziggurat.checkpoint.manifest)
    records.json       JSON values: data state, PRNG seed, counters
    arrays/params/     one Orbax OCDBT directory per item, readable with Orbax alone
    run.toml, ...      files given by the caller, under the names given
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ziggurat.checkpoint import array_store, leaves
from ziggurat.checkpoint.manifest import (
    MANIFEST,
    RECORDS,
    LeafRecord,
    Manifest,
    check_digests,
    damage,
    damaged_files,
    read_manifest,
)
from ziggurat.checkpoint.retention import reading
from ziggurat.core.errors import CheckpointError, did_you_mean
from ziggurat.core.json_types import JsonObject


def step_name(step: int) -> str:
    """Directory name of a step.

    >>> step_name(50)
    'step_00000050'
    """
    return f"step_{step:08d}"


def read_arrays(directory: Path, item: str, *, verify: bool = True) -> dict[str, Any] | np.ndarray:
    """Read one array item of a step directory as nested dicts of numpy arrays.

    Needs neither the code nor the tree classes that made the item: keys are the strings under which
    the leaves were saved (list positions become ``"0"``, ``"1"``, ...). Typed PRNG keys come as
    their uint32 words. An item that is a single array comes as that array.

    Raises:
        CheckpointError: no checkpoint, or no such item in it.
        DamagedError: a file is missing or altered; the text names it.
    """
    directory = Path(directory).absolute()
    with reading(directory):
        manifest = read_manifest(directory)
        found = leaves_of(directory, manifest, item)
        values = read_verified(
            directory,
            manifest,
            manifest.files_of([item]) if verify else [],
            lambda: array_store.read(directory, item, dict.fromkeys(found)),
        )
    tree = leaves.nest({leaf.path: value for leaf, value in values.items()})
    return tree[""] if set(tree) == {""} and not found[0].path else tree


def read_records(directory: Path, *, verify: bool = True) -> JsonObject:
    """Read the JSON records of a step directory.

    Raises:
        CheckpointError: no checkpoint here.
        DamagedError: they are missing or altered.
    """
    with reading(directory):
        manifest = read_manifest(directory)
        if verify:
            check_digests(directory, manifest, [RECORDS])
        try:
            return json.loads((directory / RECORDS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise damaged_files(directory, {RECORDS: f"unreadable ({error})"}) from None


def verify_step(directory: Path) -> Manifest:
    """Compare every file of a step directory with its digest and return the manifest.

    Raises:
        CheckpointError: no checkpoint here.
        DamagedError: a file is missing or altered; the text names it.
    """
    with reading(directory):
        manifest = read_manifest(directory)
        check_digests(directory, manifest, manifest.files)
    return manifest


def read_verified(
    directory: Path, manifest: Manifest, names: Sequence[str], read: Callable[[], Any]
) -> Any:
    """Run ``read()`` while the named files are compared with their digests.

    Raises:
        DamagedError: a file is damaged, whatever ``read`` made of it; all such files are named.
    """
    if not names:
        return read()
    with ThreadPoolExecutor(1, "verify") as pool:
        check = pool.submit(damage, directory, manifest, names)
        try:
            value = read()
        except Exception:
            if found := check.result():
                raise damaged_files(directory, found) from None
            raise
        if found := check.result():
            raise damaged_files(directory, found)
    return value


def restore_items(
    directory: Path,
    manifest: Manifest,
    like: Mapping[str, PyTree],
    *,
    cast: bool = False,
    partial: bool = False,
    verify: Sequence[str] = (),
) -> dict[str, PyTree]:
    """Restore array items in the structure, types and shardings of ``like``.

    Args:
        like: trees of ``jax.ShapeDtypeStruct``, ``jax.Array`` or numpy arrays. Leaves with a
            sharding come back as ``jax.Array`` with it, others as numpy arrays.
        cast: convert between float types, or between integer types, where ``like`` differs.
        partial: leave out leaves of the checkpoint that are not asked for.
        verify: files to compare with their digests meanwhile.

    Raises:
        CheckpointError: a leaf is missing, unexpected, or of another shape or type.
        DamagedError: files are missing or altered.
    """
    plans = {}
    for item, tree in like.items():
        found = leaves_of(directory, manifest, item)
        where = f"checkpoint {directory.name}, {item}"
        targets, structure = leaves.match(where, found, tree, cast=cast, partial=partial)
        plans[item] = targets, structure, len(targets) == len(found)

    def read() -> dict[str, PyTree]:
        trees = {}
        for item, (targets, structure, whole) in plans.items():
            values = array_store.read(directory, item, targets, whole=whole)
            trees[item] = structure.unflatten([values[leaf] for leaf in targets])
        return trees

    return read_verified(directory, manifest, verify, read)


def manifest_of(step: int, path: Path) -> Manifest:
    """The manifest of a step directory, which must be that of its name."""
    manifest = read_manifest(path)
    if manifest.step != step:
        raise damaged_files(path, {MANIFEST: f"that of step {manifest.step}"})
    return manifest


def leaves_of(directory: Path, manifest: Manifest, item: str) -> tuple[LeafRecord, ...]:
    """The leaves of an item.

    Raises:
        CheckpointError: no such item.
    """
    if item not in manifest.items:
        raise CheckpointError(
            f"checkpoint {directory.name}: item {item}",
            found="no such item",
            expected="one of " + ", ".join(manifest.items),
            fix=did_you_mean(item, manifest.items),
        )
    return manifest.items[item]
