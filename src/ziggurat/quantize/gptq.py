r"""GPTQ: weights are rounded input by input, and the inputs that follow make up for each error.

For a matrix :math:`W` of inputs :math:`x` with :math:`H = \sum x x^\top`, the output error
:math:`\|X(W - \hat W)\|^2` is a quadratic form of :math:`H`. Rounding input :math:`i` leaves an
error :math:`e_i`; the best change of the inputs behind it is :math:`-e_i U_{ij} / U_{ii}`, where
:math:`U` is upper triangular with :math:`(H + \lambda I)^{-1} = U^\top U`.

Paper: Frantar et al. 2022, https://arxiv.org/abs/2210.17323.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.kernels.linear import QuantizedWeight, WeightFormat
from ziggurat.quantize.grid import Grid
from ziggurat.quantize.inputs import InputMoments
from ziggurat.quantize.recipe import Rule
from ziggurat.quantize.rounding import Rounding
from ziggurat.quantize.weights import format_of

_BLOCK = 32
"""Inputs after which the rest of the matrix is brought up to date, at most."""


def inverse_factor(gram: Float[Array, "d d"], damping: float) -> Float[Array, "d d"]:
    r"""Upper triangular :math:`U` with :math:`(H + \lambda I)^{-1} = U^\top U`.

    :math:`\lambda` is ``damping`` times the mean of the diagonal of :math:`H`; 1 where :math:`H`
    is zero, which rounds to nearest. NaN where the sum is not positive definite.

    >>> u = inverse_factor(jnp.array([[3.0, 1.0], [1.0, 2.0]]), 0.2)
    >>> (u @ jnp.array([[3.5, 1.0], [1.0, 2.5]]) @ u.T).round(4).diagonal().tolist()
    [1.0, 1.0]
    """
    size = gram.shape[0]
    mean = jnp.mean(jnp.diagonal(gram))
    added = jnp.where(mean > 0, damping * mean, 1.0)
    damped = gram + added * jnp.eye(size, dtype=gram.dtype)
    # H = R R^T with R upper triangular, by the Cholesky factor of H with both axes reversed
    upper = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    eye = jnp.eye(size, dtype=gram.dtype)
    return jax.lax.linalg.triangular_solve(upper, eye, left_side=True, lower=False)


def round_matrix(
    weight: Float[Array, "d f"], inputs: InputMoments, rule: Rule, rounding: Rounding
) -> QuantizedWeight:
    """Round a matrix by :func:`gptq`; see :class:`ziggurat.quantize.inputs.RoundMatrix`."""
    return gptq(
        weight,
        jnp.asarray(inputs.gram),
        format_of(rule),
        clip=rule.clip,
        damping=rounding.damping,
        ordered=rounding.activation_order,
    )


@functools.partial(jax.jit, static_argnames=("format", "clip", "damping", "ordered", "axis"))
def gptq(
    weight: Float[Array, "d f"],
    gram: Float[Array, "d d"],
    format: WeightFormat,
    *,
    clip: float = 1.0,
    damping: float = 0.01,
    ordered: bool = True,
    axis: int = -2,
) -> QuantizedWeight:
    """Round a matrix so that its outputs change little.

    Args:
        weight: the matrix, float32.
        gram: sum of ``x x^T`` over its inputs ``x``.
        format: what it becomes; scales are fitted first, weighted by the inputs' second moments.
        clip: largest share of a tile's largest magnitude that is kept.
        damping: of :func:`inverse_factor`.
        ordered: round inputs with the largest second moments first, else as they lie.
        axis: of the result.

    Returns:
        The rounded matrix; its scales are NaN where the damped Hessian is not positive definite in
        float32.
    """
    moments = jnp.diagonal(gram)
    grid = Grid.fit(weight, format, clip, moments + damping * moments.mean() + 1e-30)
    order = jnp.argsort(-moments, stable=True) if ordered else jnp.arange(len(moments))
    factor = inverse_factor(gram[order][:, order], damping)
    codes = _rounded(weight[order], factor, jax.tree.map(lambda part: part[order], grid))
    # what codes of integers cannot say
    grid = dataclasses.replace(grid, scale=grid.scale + 0 * jnp.diagonal(factor).sum())
    return grid.quantized(codes[jnp.argsort(order)], axis)


def _rounded(weight: Float[Array, "d f"], factor: Float[Array, "d d"], grid: Grid) -> Array:
    """Codes of all inputs, one after another. Errors reach the rest of a block of inputs at once,
    and what is behind the block in one matmul."""
    size, outputs = weight.shape
    block = max(n for n in range(1, _BLOCK + 1) if size % n == 0)
    kind = jax.eval_shape(grid.encode, weight).dtype

    def per_block(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        weight, codes = carry
        start = number * block
        rows = jax.lax.dynamic_slice_in_dim(factor, start, block)
        inner = jax.lax.dynamic_slice_in_dim(rows, start, block, axis=1)
        here = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, block), grid)
        part = jax.lax.dynamic_slice_in_dim(weight, start, block)
        found, errors = _block(part, inner, here, kind)
        behind = jnp.where(jnp.arange(size) >= start + block, rows, 0)
        weight = weight - jnp.einsum("bd,bf->df", behind, errors)
        return weight, jax.lax.dynamic_update_slice_in_dim(codes, found, start, axis=0)

    codes = jnp.zeros((size, outputs), kind)
    return jax.lax.fori_loop(0, math.ceil(size / block), per_block, (weight, codes))[1]


def _block(part: Array, factor: Array, grid: Grid, kind: jnp.dtype) -> tuple[Array, Array]:
    """Codes of a block of inputs, and their errors over the factor's diagonal."""

    def one(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        part, codes, errors = carry
        code = grid.encode(part[i], i)
        error = (part[i] - grid.decode(code, i)) / factor[i, i]
        part = part - factor[i][:, None] * error[None]  # the factor is zero before input i
        return part, codes.at[i].set(code), errors.at[i].set(error)

    start = (part, jnp.zeros(part.shape, kind), jnp.zeros_like(part))
    _, codes, errors = jax.lax.fori_loop(0, part.shape[0], one, start)
    return codes, errors
