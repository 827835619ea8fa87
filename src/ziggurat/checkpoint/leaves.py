"""The leaves of an array item: their names, what can be stored, and what fits what is asked for."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ziggurat.checkpoint.manifest import LeafRecord
from ziggurat.core.errors import CheckpointError, did_you_mean
from ziggurat.core.pytrees import Leaf

_ITEM = re.compile(r"[A-Za-z0-9_-]+")
_NOT_STORABLE = frozenset({"uint1", "uint2", "uint4", "int1", "float6_e2m3fn", "float6_e3m2fn"})
_NOT_STORABLE |= {"float8_e4m3", "float128", "object"}
"""Types the array store (TensorStore zarr) has no code for."""


def describe(item: str, tree: PyTree) -> list[tuple[LeafRecord, Leaf]]:
    """Leaves of an item with their records; typed PRNG keys become their words.

    Raises:
        CheckpointError: a name or a leaf cannot be stored; the text names it.
    """
    if not _ITEM.fullmatch(item):
        raise CheckpointError(
            f"checkpoint item {item!r}",
            found="a name with other characters",
            expected="letters, digits, - and _",
        )
    leaves: dict[str, tuple[LeafRecord, Leaf]] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        names = path_of(path)
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


def match(
    where: str,
    found: Sequence[LeafRecord],
    like: PyTree,
    *,
    cast: bool = False,
    partial: bool = False,
) -> tuple[dict[LeafRecord, Leaf], Any]:
    """Match leaves of a checkpoint with those of ``like``; returns the pairs and the structure of
    ``like``.

    Args:
        where: what error lines begin with.
        cast: types may differ among floats and among integers.
        partial: the checkpoint may have leaves that are not asked for.

    Raises:
        CheckpointError: a leaf is missing, unexpected, or of another shape or type.
    """
    by_name = {leaf.name: leaf for leaf in found}
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {".".join(path_of(path)): target for path, target in paths}
    for name in wanted:
        if name not in by_name:
            raise CheckpointError(
                f"{where}: leaf {name}",
                found="no such leaf",
                expected=f"one of its {len(found)} leaves",
                fix=did_you_mean(name, by_name.keys() - wanted.keys())
                or "restore into the model it was saved from",
            )
    for name in by_name.keys() - wanted.keys() if not partial else ():
        raise CheckpointError(
            f"{where}: leaf {name}",
            found="a leaf that is not asked for",
            expected=f"only the {len(wanted)} leaves asked for",
            fix=did_you_mean(name, wanted.keys() - by_name.keys())
            or "restore into the model it was saved from, or pass partial=True",
        )
    for name, target in wanted.items():
        _check_leaf(f"{where}: leaf {name}", by_name[name], target, cast)
    return {by_name[name]: target for name, target in wanted.items()}, structure


def path_of(path: Sequence[Any]) -> tuple[str, ...]:
    """A JAX key path as plain strings."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def nest(flat: Mapping[tuple[str, ...], Leaf]) -> dict[str, PyTree]:
    """Nested dicts from paths; the empty path becomes the key ``""``.

    >>> nest({("a", "b"): 1, ("c",): 2})
    {'a': {'b': 1}, 'c': 2}
    """
    tree: dict[str, PyTree] = {}
    for path, value in flat.items():
        *parents, last = path or ("",)
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    return tree


def look_up(tree: PyTree, path: tuple[str, ...]) -> PyTree:
    """Value at ``path`` in the nested dicts of :func:`nest`."""
    for key in path or ("",):
        tree = tree[key]
    return tree


def _check_leaf(where: str, found: LeafRecord, target: Leaf, cast: bool) -> None:
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


def _check_storable(where: str, value: Leaf) -> None:
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
    if isinstance(value, jax.Array) and jax.process_count() > 1 and value.is_fully_addressable:
        raise CheckpointError(
            where,
            found="an array on the devices of one process",
            expected="one on a mesh of all processes, or a numpy array",
            fix="place it with a replicated NamedSharding",
        )
