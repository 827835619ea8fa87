"""One step directory: writing its content, and reading it back without the code that made it.

Layout of ``step_00000050/``::

    manifest.json      trees, sizes, digests (see ziggurat.checkpoint.manifest)
    records.json       JSON values: data state, PRNG seed, counters
    arrays/params/     one Orbax OCDBT directory per item, readable with Orbax alone
    run.toml, ...      files given by the caller, under the names given
"""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ziggurat.checkpoint.manifest import (
    ARRAYS,
    MANIFEST,
    RECORDS,
    RESERVED,
    DamagedError,
    LeafRecord,
    Manifest,
    check_digests,
    read_manifest,
)
from ziggurat.core.errors import CheckpointError, did_you_mean

_ITEM = re.compile(r"[A-Za-z0-9_-]+")
_NOT_STORABLE = frozenset({"uint1", "uint2", "uint4", "int1", "float6_e2m3fn", "float6_e3m2fn"})
_NOT_STORABLE |= {"float8_e4m3", "float128", "object"}
"""Types the array store (TensorStore zarr) has no code for."""


def step_name(step: int) -> str:
    """Directory name of a step.

    >>> step_name(50)
    'step_00000050'
    """
    return f"step_{step:08d}"


def start_writing(
    directory: Path,
    arrays: Mapping[str, PyTree],
    records: Mapping[str, Any],
    files: Mapping[str, bytes | Path],
) -> Callable[[], dict[str, tuple[LeafRecord, ...]]]:
    """Write into an existing empty ``directory``; arrays continue in the background.

    When this returns, all array data has been copied to the host, so that donated or mutated
    buffers cannot reach the checkpoint. The returned function waits for the arrays and returns
    their records, for the manifest. With several processes all of them call this; the first one
    writes records and files.

    Raises:
        CheckpointError: a leaf, record or file cannot be stored; the text names it.
    """
    import orbax.checkpoint as ocp

    flat = {item: _describe_leaves(item, tree) for item, tree in arrays.items()}
    primary = jax.process_index() == 0
    text = _records_text(records)
    contents = {name: _file_content(name, content) for name, content in files.items()}
    if primary:
        (directory / RECORDS).write_text(text, encoding="utf-8")
        for name, content in contents.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_bytes(content)
    trees = {
        item: _nest({leaf.path: value for leaf, value in leaves if leaf.stored})
        for item, leaves in flat.items()
    }
    checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    arguments = {
        item: ocp.args.PyTreeSave(tree)  # pyright: ignore[reportCallIssue]
        for item, tree in trees.items()
        if tree
    }
    if arguments:
        checkpointer.save(directory / ARRAYS, args=ocp.args.Composite(**arguments))

    def finish() -> dict[str, tuple[LeafRecord, ...]]:
        try:
            checkpointer.wait_until_finished()
        finally:
            checkpointer.close()
        return {item: tuple(leaf for leaf, _ in leaves) for item, leaves in flat.items()}

    return finish


def read_arrays(directory: Path, item: str, *, verify: bool = True) -> dict[str, Any] | np.ndarray:
    """One array item of a step directory as nested dicts of numpy arrays.

    Needs neither the code nor the tree classes that made the item: keys are the strings under which
    the leaves were saved (list positions become ``"0"``, ``"1"``, ...). Typed PRNG keys come as
    their uint32 words. An item that is a single array comes as that array.

    Raises:
        CheckpointError: no checkpoint, or no such item in it.
        DamagedError: a file is missing or altered; the text names it.
    """
    manifest = read_manifest(directory)
    leaves = _leaves_of(directory, manifest, item)
    if verify:
        check_digests(directory, manifest, manifest.files_of([item]))
    values = _read_item(directory, item, dict.fromkeys(leaves))
    tree = _nest({leaf.path: value for leaf, value in values.items()})
    return tree[""] if set(tree) == {""} and not leaves[0].path else tree


def read_records(directory: Path, *, verify: bool = True) -> dict[str, Any]:
    """The JSON records of a step directory."""
    manifest = read_manifest(directory)
    if verify:
        check_digests(directory, manifest, [RECORDS])
    return json.loads((directory / RECORDS).read_text(encoding="utf-8"))


def verify_step(directory: Path) -> Manifest:
    """Compare every file of a step directory with its digest and return the manifest.

    Raises:
        CheckpointError: no checkpoint here.
        DamagedError: a file is missing or altered; the text names it.
    """
    manifest = read_manifest(directory)
    check_digests(directory, manifest, manifest.files)
    return manifest


def restore_item(
    directory: Path, manifest: Manifest, item: str, like: PyTree, *, cast: bool = False
) -> PyTree:
    """One array item in the structure, types and shardings of ``like``.

    Args:
        like: tree of ``jax.ShapeDtypeStruct``, ``jax.Array`` or numpy arrays. Leaves with a
            sharding come back as ``jax.Array`` with it, others as numpy arrays.
        cast: convert between float types, or between integer types, where ``like`` differs.

    Raises:
        CheckpointError: a leaf is missing, unexpected, or of another shape or type.
    """
    found = {leaf.name: leaf for leaf in _leaves_of(directory, manifest, item)}
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {".".join(_path(path)): target for path, target in paths}
    where = f"checkpoint {directory.name}, {item}"
    for name in wanted:
        if name not in found:
            raise CheckpointError(
                f"{where}: leaf {name}",
                found="no such leaf",
                expected=f"one of its {len(found)} leaves",
                fix=did_you_mean(name, found.keys() - wanted.keys())
                or "restore into the model it was saved from",
            )
    for name in found:
        if name not in wanted:
            raise CheckpointError(
                f"{where}: leaf {name}",
                found="a leaf that is not asked for",
                expected=f"only the {len(wanted)} leaves asked for",
                fix=did_you_mean(name, wanted.keys() - found.keys())
                or "restore into the model it was saved from, or use read_arrays",
            )
    for name, target in wanted.items():
        _check_leaf(f"{where}: leaf {name}", found[name], target, cast)
    values = _read_item(directory, item, {found[name]: target for name, target in wanted.items()})
    return structure.unflatten([values[found[name]] for name in wanted])


def _leaves_of(directory: Path, manifest: Manifest, item: str) -> tuple[LeafRecord, ...]:
    if item not in manifest.items:
        raise CheckpointError(
            f"checkpoint {directory.name}: item {item}",
            found="no such item",
            expected="one of " + ", ".join(manifest.items),
            fix=did_you_mean(item, manifest.items),
        )
    return manifest.items[item]


def _check_leaf(where: str, found: LeafRecord, target: Any, cast: bool) -> None:
    if not hasattr(target, "shape") or not hasattr(target, "dtype"):
        raise CheckpointError(
            where, found=type(target).__name__, expected="an array or ShapeDtypeStruct to restore"
        )
    if found.shape != tuple(target.shape):
        raise CheckpointError(
            where,
            found=f"shape {found.shape}",
            expected=f"{tuple(target.shape)}",
            fix="restore into a model of the same dimensions",
        )
    wanted = str(target.dtype)
    if wanted == found.dtype:
        return
    kinds = (np.floating, np.integer)
    same_kind = not found.prng and any(
        _is_kind(found.dtype, kind) and _is_kind(wanted, kind) for kind in kinds
    )
    if not (cast and same_kind):
        fix = "pass cast=True to convert" if same_kind else "these types do not convert"
        raise CheckpointError(where, found=f"type {found.dtype}", expected=wanted, fix=fix)


def _is_kind(dtype: str, kind: type) -> bool:
    return not dtype.startswith("key<") and jax.numpy.issubdtype(jax.numpy.dtype(dtype), kind)


def _read_item(
    directory: Path, item: str, targets: Mapping[LeafRecord, Any]
) -> dict[LeafRecord, Any]:
    """Read leaves, each as its target says (None: numpy as stored)."""
    import orbax.checkpoint as ocp

    orders = {leaf.path: _order(leaf, target) for leaf, target in targets.items() if leaf.stored}
    tree: Any = {}
    if orders:
        try:
            tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
                directory / ARRAYS / item,
                args=ocp.args.PyTreeRestore(restore_args=_nest(orders)),  # pyright: ignore[reportCallIssue]
            )
        except Exception as error:
            line = str(error).strip().partition("\n")[0][:300] or type(error).__name__
            raise DamagedError(
                f"checkpoint {directory.name}: {ARRAYS}/{item}",
                found=f"data that cannot be read ({line})",
                expected="intact arrays",
                fix="restore an older step",
            ) from error
    return {
        leaf: _finish_leaf(leaf, _lookup(tree, leaf.path) if leaf.stored else None, target)
        for leaf, target in targets.items()
    }


def _order(leaf: LeafRecord, target: Any) -> Any:
    """What to ask Orbax for."""
    import orbax.checkpoint as ocp

    if leaf.prng or target is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = getattr(target, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=target.dtype)
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array,
        sharding=sharding,
        global_shape=tuple(target.shape),
        dtype=target.dtype,
    )


def _finish_leaf(leaf: LeafRecord, value: Any, target: Any) -> Any:
    """Turn what Orbax gave into what was asked: typed keys, and arrays without elements."""
    if not leaf.stored:
        dtype = jax.numpy.dtype(leaf.dtype) if target is None else target.dtype
        value = np.zeros(leaf.shape, dtype)
    if target is None:
        return value
    sharding = getattr(target, "sharding", None)
    if leaf.prng:
        value = jax.random.wrap_key_data(jax.numpy.asarray(value), impl=leaf.prng)
        return value if sharding is None else jax.device_put(value, sharding)
    if not leaf.stored and sharding is not None:
        return jax.device_put(value, sharding)
    return value


def _path(path: Sequence[Any]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _describe_leaves(item: str, tree: PyTree) -> list[tuple[LeafRecord, Any]]:
    """Leaves of an item with their records; typed PRNG keys become their words."""
    if not _ITEM.fullmatch(item):
        raise CheckpointError(
            f"checkpoint item {item!r}",
            found="a name with other characters",
            expected="letters, digits, - and _",
        )
    leaves: dict[str, tuple[LeafRecord, Any]] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        names = _path(path)
        name = ".".join(names)
        where = f"checkpoint item {item}: leaf {name}"
        if name in leaves:
            raise CheckpointError(
                where, found="two leaves of this name", expected="one", fix="rename a key"
            )
        _check_storable(where, value)
        record = LeafRecord(names, tuple(map(int, value.shape)), str(value.dtype))
        if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            record = dataclasses.replace(record, prng=str(jax.random.key_impl(value)))
            value = jax.random.key_data(value)
        leaves[name] = record, value
    return list(leaves.values())


def _check_storable(where: str, value: Any) -> None:
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
        raise CheckpointError(
            where,
            found=f"a {type(value).__name__}",
            expected="a jax or numpy array",
            fix="put plain values into records",
        )
    kind = getattr(value.dtype, "kind", "")
    if str(value.dtype) in _NOT_STORABLE or kind in ("U", "S", "m", "M"):
        raise CheckpointError(
            where,
            found=f"type {value.dtype}",
            expected="a type the array store has",
            fix="save it as a wider integer or its bytes",
        )
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key) and value.size == 0:
        raise CheckpointError(where, found="no PRNG keys", expected="at least one key")


def _nest(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path or ("",)
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    return tree


def _lookup(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path or ("",):
        tree = tree[key]
    return tree


def _records_text(records: Mapping[str, Any]) -> str:
    _check_json(dict(records), "records")
    return json.dumps(records, indent=1) + "\n"


def _check_json(value: Any, where: str) -> None:
    """Only what reads back equal: JSON would turn tuples into lists and integer keys into text."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise CheckpointError(where, found=f"key {key!r}", expected="text keys")
            _check_json(entry, f"{where}.{key}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check_json(entry, f"{where}.{index}")
    elif type(value) not in (str, int, float, bool, type(None)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise CheckpointError(
            where,
            found=f"{value!r} ({type(value).__name__})",
            expected="a JSON value: dict, list, str, int, finite float, bool or None",
        )


def _file_content(name: str, content: bytes | Path) -> bytes | Path:
    parts = PurePosixPath(name).parts
    bad = not parts or parts[0] == "/" or ".." in parts or "\\" in name or name.endswith("/")
    if bad or parts[0] in RESERVED:
        raise CheckpointError(
            f"checkpoint file {name!r}",
            found="a reserved name" if not bad else "a path outside the step directory",
            expected=f"a relative path other than {MANIFEST}, {RECORDS} and {ARRAYS}/",
        )
    if isinstance(content, Path) and not content.is_file():
        raise CheckpointError(
            f"checkpoint file {name!r}",
            found=f"no file at {content}",
            expected="bytes or the path of a file",
        )
    return content
