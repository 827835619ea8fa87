"""Adafactor's scaling, layer by layer over stacked parameters.

``optax.adafactor`` takes the root mean square over a whole leaf and factors its two largest
dimensions, which for stacked layers would mix layers. Here every layer and expert is scaled as if
it were a leaf of its own, and the reduced dimension of a factored moment stays with size 1, so that
the state has the axes of the parameters.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from ziggurat.core.pytrees import map_named
from ziggurat.optim.groups import Axes, stacked_dims

PARAMETER_FLOOR = 1e-3
"""Smallest root mean square assumed of a parameter when steps are relative to it."""


class FactoredState(NamedTuple):
    """Second moments, float32. A leaf uses ``row`` and ``column``, or ``full``; what it does not
    use has size 1 in every dimension."""

    count: Int[Array, ""]
    row: PyTree
    """Mean over the larger dimension of a matrix."""
    column: PyTree
    """Mean over the smaller dimension of a matrix."""
    full: PyTree


class _Leaf(NamedTuple):
    update: Array
    row: Array
    column: Array
    full: Array


def factored_dims(shape: tuple[int, ...], axes: Axes, smallest: int) -> tuple[int, int] | None:
    """The second largest and the largest dimension of one layer's matrix, or None if it is no
    matrix or the former is below ``smallest``.

    >>> factored_dims((300, 128, 512), ("layers", "embed", "mlp"), 128)
    (1, 2)
    >>> factored_dims((300, 512), ("layers", "embed"), 128)
    """
    first = stacked_dims(axes)
    order = [int(i) + first for i in np.argsort(shape[first:], kind="stable")]
    if len(order) < 2 or shape[order[-2]] < smallest:
        return None
    return order[-2], order[-1]


def root_mean_square(x: Float[Array, "*s"], axes: Axes) -> Float[Array, "*one"]:
    """Root mean square over the dimensions of one layer, which stay with size 1."""
    dims = tuple(range(stacked_dims(axes), x.ndim))
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=dims, keepdims=True))


def scale_by_adafactor(
    axes: Mapping[str, Axes],
    *,
    decay_exponent: float = 0.8,
    min_dim_to_factor: int = 128,
    update_clip: float = 1.0,
    scale_by_parameter: bool = True,
    eps: float = 1e-30,
) -> optax.GradientTransformation:
    r"""Adafactor's direction of ascent (no learning rate, no momentum, no decay).

    .. math::

        \beta_t = 1 - t^{-\gamma}, \quad
        R_t = \beta_t R_{t-1} + (1 - \beta_t)\, \mathrm{mean}_1(G^2 + \epsilon), \quad
        C_t = \beta_t C_{t-1} + (1 - \beta_t)\, \mathrm{mean}_0(G^2 + \epsilon)

        V_{ij} = \frac{R_i C_j}{\mathrm{mean}(R)}, \quad U = G / \sqrt{V}, \quad
        \hat U = U / \max(1, \mathrm{rms}(U) / d) \cdot \max(10^{-3}, \mathrm{rms}(X))

    Args:
        axes: logical axes by dotted parameter name.
        decay_exponent: :math:`\gamma`.
        min_dim_to_factor: matrices with a smaller dimension keep the full second moment.
        update_clip: :math:`d`; ``inf`` for none.
        scale_by_parameter: whether to multiply by the parameter's root mean square.
        eps: :math:`\epsilon`.

    References:
        Shazeer and Stern, https://arxiv.org/abs/1804.04235
    """

    def init(params):
        def leaf(name, x):
            one = (1,) * x.ndim
            dims = factored_dims(x.shape, axes[name], min_dim_to_factor)
            shapes = (one, one, x.shape)
            if dims is not None:
                small, large = dims
                shapes = (_without(x.shape, large), _without(x.shape, small), one)
            return _Leaf(jnp.zeros(one), *(jnp.zeros(s, jnp.float32) for s in shapes))

        return _state(jnp.zeros((), jnp.int32), map_named(leaf, params))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("scale_by_adafactor: update needs params")
        count = jnp.asarray(optax.safe_increment(state.count))
        decay = 1.0 - jnp.power(count.astype(jnp.float32), -decay_exponent)

        def leaf(name, gradient, row, column, full, parameter):
            gradient = gradient.astype(jnp.float32)
            dims = factored_dims(gradient.shape, axes[name], min_dim_to_factor)
            out = _scale(gradient, row, column, full, dims, decay, eps)
            step = out.update / jnp.maximum(
                1.0, root_mean_square(out.update, axes[name]) / update_clip
            )
            if scale_by_parameter:
                size = root_mean_square(parameter.astype(jnp.float32), axes[name])
                step *= jnp.maximum(size, PARAMETER_FLOOR)
            return out._replace(update=step)

        out = map_named(leaf, updates, state.row, state.column, state.full, params)
        return _pick(out, "update"), _state(count, out)

    return optax.GradientTransformation(init, update)


def _scale(
    gradient: Array,
    row: Array,
    column: Array,
    full: Array,
    dims: tuple[int, int] | None,
    decay: Array,
    eps: float,
) -> _Leaf:
    squared = jnp.square(gradient) + eps
    if dims is None:
        full = decay * full + (1.0 - decay) * squared
        return _Leaf(gradient * jax.lax.rsqrt(full), row, column, full)
    small, large = dims
    row = decay * row + (1.0 - decay) * squared.mean(axis=large, keepdims=True)
    column = decay * column + (1.0 - decay) * squared.mean(axis=small, keepdims=True)
    mean = row.mean(axis=small, keepdims=True)
    return _Leaf(gradient * jax.lax.rsqrt(row / mean) * jax.lax.rsqrt(column), row, column, full)


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return tuple(1 if i == dim else n for i, n in enumerate(shape))


def _pick(tree: PyTree, field: str) -> PyTree:
    return jax.tree.map(
        lambda leaf: getattr(leaf, field), tree, is_leaf=lambda x: isinstance(x, _Leaf)
    )


def _state(count: Int[Array, ""], tree: PyTree) -> FactoredState:
    return FactoredState(count, *(_pick(tree, field) for field in ("row", "column", "full")))
