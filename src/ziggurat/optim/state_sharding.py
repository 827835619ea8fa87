"""Logical axes of an optimizer's state, so that it is sharded like the parameters."""

import jax
from jaxtyping import PyTree

from ziggurat.core.pytrees import Leaf
from ziggurat.optim.groups import Axes, is_axes


def state_axes(opt_state: PyTree, params_axes: PyTree) -> PyTree:
    """Logical axis names of every array of an optimizer state, as a tree of its structure.

    A state leaf belongs to the parameter whose path ends its own path
    (``0.mu.blocks.query.kernel`` to ``blocks.query.kernel``) and gets that parameter's axes when
    it has as many dimensions; a dimension of size 1, like the reduced one of Adafactor's factored
    moments, is not sharded. All other leaves (step counts, coefficients) are replicated. Map over
    the result with ``is_leaf=is_axes``.

    Args:
        opt_state: arrays or ``jax.ShapeDtypeStruct``, e.g. ``jax.eval_shape(transform.init, p)``.
        params_axes: nested dict as given to :func:`ziggurat.optim.build`.

    >>> import jax.numpy as jnp, optax
    >>> axes = {"w": ("embed", "mlp")}
    >>> state = jax.eval_shape(optax.adam(1e-3).init, {"w": jnp.zeros((4, 8))})
    >>> adam, _ = state_axes(state, axes)
    >>> adam.count, adam.mu
    ((), {'w': ('embed', 'mlp')})
    """
    known: dict[tuple, Axes] = {
        tuple(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params_axes, is_leaf=is_axes)
    }
    lengths = sorted({len(path) for path in known if path}, reverse=True)

    def axes_of(path: tuple, leaf: Leaf) -> Axes:
        for length in lengths:
            axes = known.get(tuple(path[-length:])) if length <= len(path) else None
            if axes is not None and len(axes) == len(leaf.shape):
                return tuple(a if n > 1 else None for a, n in zip(axes, leaf.shape, strict=True))
        return (None,) * len(leaf.shape)

    return jax.tree_util.tree_map_with_path(axes_of, opt_state)
