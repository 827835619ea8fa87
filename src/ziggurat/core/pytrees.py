"""Dotted names for the leaves of a pytree, the same in checkpoints, masks, reports and errors."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

Leaf = Any
"""A leaf of a pytree: an array, or what stands in for one while trees are described or mapped (a
``ShapeDtypeStruct``, a sharding, a weight of several arrays)."""


def leaf_name(path: tuple[Any, ...]) -> str:
    """``params.blocks.attention.query.kernel`` for a key path.

    >>> leaf_name((jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(0)))
    'a.0'
    """
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None) -> dict[str, Leaf]:
    """Leaves by dotted name, in tree order; ``is_leaf`` as in ``jax.tree.leaves``.

    >>> named_leaves({"a": {"b": 1}, "c": [2, 3]})
    {'a.b': 1, 'c.0': 2, 'c.1': 3}
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {leaf_name(path): leaf for path, leaf in pairs}


def map_named(function: Callable[..., Leaf], tree: PyTree, *rest: PyTree) -> PyTree:
    """``jax.tree.map`` whose function also gets the leaf's dotted name first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(leaf_name(path), *leaves), tree, *rest
    )


def size_bytes(tree: PyTree) -> int:
    """Bytes of all array leaves (arrays or ShapeDtypeStructs)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def nested(flat: dict[str, PyTree]) -> dict[str, PyTree]:
    """The nested dict whose leaves have these dotted names.

    >>> nested({"a.b": 1, "a.c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    tree: dict[str, PyTree] = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = leaf
    return tree
