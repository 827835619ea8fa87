r"""Float32 master weights beside parameters of a narrower type.

A bfloat16 number has 8 significant bits: next to 1.0 there is nothing nearer than 0.0039 below and
0.0078 above, so a step of 1e-4 changes nothing, however often it is taken. The optimizer therefore
updates a float32 copy of every narrower parameter, and the parameter is that copy rounded:

.. math::

    m_{t+1} = m_t + u_t, \quad \theta_{t+1} = \mathrm{round}(m_{t+1})

Copies are part of the optimizer's state: sharded, saved and counted like its moments, which are
float32 too. Float32 parameters have none, and their state is that of the optimizer alone.

Paper: Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ziggurat.core.pytrees import Leaf, map_named


class MasterState(NamedTuple):
    """Optimizer state with float32 copies of narrower parameters."""

    inner: PyTree
    """The optimizer's own state, of float32 parameters."""
    weights: PyTree
    """The parameters' tree: float32 copies of narrower ones, ``None`` for all others."""


def with_master_weights(
    transform: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Apply ``transform`` to float32 copies of parameters that are narrower.

    Its updates lead from the parameters to the rounded copies; :func:`applied` takes the copies
    themselves and is exact.

    >>> transform = with_master_weights(optax.with_extra_args_support(optax.sgd(1e-4)))
    >>> params = {"w": jnp.ones(1, jnp.bfloat16)}
    >>> state = transform.init(params)
    >>> for _ in range(30):
    ...     updates, state = transform.update({"w": jnp.ones(1)}, state, params)
    ...     params = applied(params, updates, state)
    >>> float(params["w"][0]), round(float(state.weights["w"][0]), 6)
    (0.99609375, 0.997)
    """

    def init(params: PyTree) -> PyTree:
        if not any(_is_narrow(leaf) for leaf in jax.tree.leaves(params)):
            return transform.init(params)
        wide = jax.tree.map(widened, params)
        weights = jax.tree.map(lambda p, w: w if _is_narrow(p) else None, params, wide)
        return MasterState(transform.init(wide), weights)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        if not isinstance(state, MasterState):
            return transform.update(updates, state, params, **extra)
        before = exact(params, state)
        wide = jax.tree.map(widened, updates)
        moves, inner = transform.update(wide, state.inner, before, **extra)
        after = jax.tree.map(jnp.add, before, moves)
        weights = jax.tree.map(lambda p, w: w if _is_narrow(p) else None, params, after)

        def move(parameter: Array, by: Array, new: Array) -> Array:
            if not _is_narrow(parameter):
                return by
            return new.astype(parameter.dtype).astype(jnp.float32) - widened(parameter)

        return jax.tree.map(move, params, moves, after), MasterState(inner, weights)

    return optax.GradientTransformationExtraArgs(init, update)


def widened(array: Array) -> Array:
    """Convert a floating array to float32 if it is narrower."""
    return array.astype(jnp.float32) if _is_narrow(array) else array


def exact(params: PyTree, state: PyTree) -> PyTree:
    """Parameters as the optimizer holds them: float32 copies where there are any."""
    if not isinstance(state, MasterState):
        return params
    return jax.tree.map(lambda p, w: p if w is None else w, params, state.weights)


def applied(params: PyTree, updates: PyTree, state: PyTree) -> PyTree:
    """Add an update to the parameters.

    Args:
        params: before it.
        updates: what the transform returned.
        state: the optimizer's new state.
    """
    if not isinstance(state, MasterState):
        return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)

    def one(parameter: Array, update: Array, weight: Array | None) -> Array:
        if weight is None:
            return parameter + update.astype(parameter.dtype)
        return weight.astype(parameter.dtype)

    return jax.tree.map(one, params, updates, state.weights)


def shifted(params: PyTree, state: PyTree, by: Mapping[str, Array]) -> tuple[PyTree, PyTree]:
    """Move some parameters outside the optimizer, and their float32 copies with them.

    Args:
        params: the parameters.
        state: the optimizer's state.
        by: what is added to a parameter, by its dotted name.
    """

    def one(name: str, leaf: Array) -> Array:
        return leaf + by[name].astype(leaf.dtype) if name in by else leaf

    moved = map_named(one, exact(params, state))
    if isinstance(state, MasterState):
        weights = jax.tree.map(lambda p, w: w if _is_narrow(p) else None, params, moved)
        state = state._replace(weights=weights)
    return jax.tree.map(lambda p, w: w.astype(p.dtype), params, moved), state


def _is_narrow(leaf: Leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
