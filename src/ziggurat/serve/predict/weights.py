"""Parting a callable from its arrays: what is weight and what is code.

Arrays in the parameters, or in a callable pytree itself (a Flax NNX or Equinox module), become
weights by their dotted names; everything else is fixed in the program.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ziggurat.core.errors import ServeError
from ziggurat.core.pytrees import Leaf, leaf_name
from ziggurat.serve.predict.signature import Tensor


@dataclasses.dataclass(frozen=True)
class Parted:
    """A function split into weights and a function of weights and inputs.

    >>> parted = part(lambda p, x: p["scale"] * x, {"scale": np.float32(3)})
    >>> sorted(parted.weights), float(parted.call(parted.weights, [2.0]))
    (['scale'], 6.0)
    """

    weights: dict[str, np.ndarray]
    """Host copies, by dotted name; a typed PRNG key as its words."""
    call: Callable[[Mapping[str, Any], Sequence[Any]], Any]
    """``call(weights, inputs)`` gives what the user's function returns."""

    def __call__(self, inputs: Mapping[str, PyTree], order: Sequence[Tensor]) -> PyTree:
        """Run the function on the weights it came with, jitted but not exported."""
        return jax.jit(self.call)(self.weights, [inputs[tensor.name] for tensor in order])


def part(fn: Callable[..., Any], params: PyTree) -> Parted:
    """Split ``fn(params, *inputs)``, or ``fn(*inputs)`` if ``params`` is ``None``, into weights and
    function.

    Raises:
        ServeError: ``fn`` cannot be called, or two arrays have the same name.
    """
    if not callable(fn):
        raise ServeError("export", found=type(fn).__name__, expected="a function or a module")
    if params is None:
        tree, apply = _own_tree(fn)
    else:
        tree, apply = params, fn
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [leaf_name(path) for path, _ in paths]
    leaves = [leaf for _, leaf in paths]
    kept = {i: _unkeyed(leaf) for i, leaf in enumerate(leaves) if _is_array(leaf)}
    weights = {names[i] or "weight": array for i, (array, _) in kept.items()}
    if len(weights) != len(kept):
        twice = sorted({n for n in (names[i] for i in kept) if names.count(n) > 1})
        raise ServeError(
            "export: weights", found=f"the name {twice[0]} twice", expected="each name once"
        )

    def call(given: Mapping[str, PyTree], inputs: Sequence[PyTree]) -> PyTree:
        filled = list(leaves)
        for i, (_, rekey) in kept.items():
            filled[i] = rekey(given[names[i] or "weight"])
        return apply(jax.tree_util.tree_unflatten(structure, filled), *inputs)

    return Parted(weights, call)


def _own_tree(fn: Callable[..., PyTree]) -> tuple[PyTree, Callable[..., PyTree]]:
    """The pytree that a callable is, and how to call it again from one."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(fn, nnx.Module):
        graph, state = nnx.split(fn)

        def call(tree: PyTree, *inputs: PyTree) -> PyTree:
            before = _by_name(tree)  # taken now: the module shares the tree's variables
            module = nnx.merge(graph, tree)
            result = module(*inputs)
            _check_unchanged(before, _by_name(nnx.split(module)[1]))
            return result

        return state, call
    leaves = jax.tree.leaves(fn)
    if len(leaves) == 1 and leaves[0] is fn:  # a plain function is its own leaf
        return {}, lambda tree, *inputs: fn(*inputs)
    return fn, lambda tree, *inputs: tree(*inputs)


def _by_name(tree: PyTree) -> dict[str, Leaf]:
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _check_unchanged(before: Mapping[str, Leaf], after: Mapping[str, Leaf]) -> None:
    """Refuse a module whose call writes to its variables: a bundle would freeze them.

    Values recorded for a reader (``nnx.sow``) are new variables and do not count.
    """
    changed = [name for name, leaf in before.items() if after.get(name) is not leaf]
    if changed:
        raise ServeError(
            f"export: variable {changed[0]} of the module",
            found="a call changes it",
            expected="a module that only computes",
            fix="put it into evaluation mode, module.eval(), or make the value an input and an "
            "output",
        )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def _unkeyed(leaf: Any) -> tuple[np.ndarray, Callable[[Any], Any]]:
    """A leaf as a host array of a type that JAX has, and how to make the leaf of it again."""
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        kind = jax.random.key_impl(leaf)
        return np.asarray(jax.random.key_data(leaf)), lambda words: jax.random.wrap_key_data(
            words, impl=kind
        )
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype)), lambda value: value
