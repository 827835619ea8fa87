r"""Learned rounding: SignSGD on what is added before rounding, and on how far scales reach.

Integers are :math:`q = \mathrm{clip}(\lfloor W / s + z + V \rceil)` with :math:`V` in
[-0.5, 0.5], and the range of each tile is :math:`[\beta \min W, \alpha \max W]` (with symmetric
scales :math:`\alpha \max|W|`) with :math:`\alpha, \beta` in [0, 1]. Rounding passes gradients on as
they are. Each step moves every variable by the rate against its gradient's sign; the rate falls
linearly, and the step of the least loss wins.

The paper's loss is the error of a whole block's outputs. Here it is that of the matrix's own,
:math:`\|X(W - \hat W)\|^2`, which the second moments of its inputs decide: no activations are kept,
and a step costs one matmul whatever the text's length.

Paper: Cheng et al. 2023, https://arxiv.org/abs/2309.05516.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.linear import QuantizedWeight, WeightFormat
from ziggurat.quantize.grid import LIMITS, Grid
from ziggurat.quantize.inputs import InputMoments
from ziggurat.quantize.recipe import Rule
from ziggurat.quantize.rounding import Rounding
from ziggurat.quantize.weights import format_of


def round_matrix(
    weight: Float[Array, "d f"], inputs: InputMoments, rule: Rule, rounding: Rounding
) -> QuantizedWeight:
    """Learn a matrix's rounding; see :class:`ziggurat.quantize.inputs.RoundMatrix`.

    Raises:
        ConfigError: the format is not of integers.
    """
    if rule.weight not in LIMITS:
        raise ConfigError(
            "--method autoround",
            found=f"{rule.weight} weights",
            expected=" or ".join(LIMITS),
            fix="use --method gptq, which rounds to every type",
        )
    gram = jnp.asarray(inputs.gram) / max(int(inputs.tokens), 1)
    return _learned(weight, gram, format_of(rule), rule.clip, rounding.iterations)


@functools.partial(jax.jit, static_argnames=("format", "clip", "iterations"))
def _learned(
    weight: Float[Array, "d f"],
    gram: Float[Array, "d d"],
    format: WeightFormat,
    clip: float,
    iterations: int,
) -> QuantizedWeight:
    tiles = weight.reshape(format.tiles(len(weight)), -1, weight.shape[1])
    ends = (
        jnp.maximum(tiles.max(1, keepdims=True), 0),
        jnp.minimum(tiles.min(1, keepdims=True), 0),
    )
    if format.symmetric:
        ends = (jnp.abs(tiles).max(1, keepdims=True), None)

    def loss(variables: Any) -> Array:
        grid, codes = _rounded(tiles, ends, variables, format, clip)
        off = (grid.decode(codes) - tiles).reshape(weight.shape)
        return jnp.einsum("df,de,ef->", off, gram, off)

    def step(carry: Any, number: Array) -> tuple[Any, None]:
        variables, least, best = carry
        value, slope = jax.value_and_grad(loss)(variables)
        best = jax.tree.map(lambda new, old: jnp.where(value < least, new, old), variables, best)
        rate = (1 - number / iterations) / iterations
        moved = jax.tree.map(lambda x, g: x - rate * jnp.sign(g), variables, slope)
        added = jnp.clip(moved[0], -0.5, 0.5)
        shares = jax.tree.map(lambda share: jnp.clip(share, 0, 1), moved[1])
        return ((added, shares), jnp.minimum(value, least), best), None

    start = (jnp.zeros_like(tiles), jax.tree.map(jnp.ones_like, ends))
    # the last of them is only looked at, not moved on
    numbers = jnp.arange(iterations + 1, dtype=jnp.float32)
    (_, _, best), _ = jax.lax.scan(step, (start, jnp.float32(jnp.inf), start), numbers)
    grid, codes = _rounded(tiles, ends, best, format, clip)
    whole = grid.spread(len(weight))
    return whole.quantized(codes.reshape(weight.shape).astype(jnp.int8), -2)


def _rounded(
    tiles: Float[Array, "n m f"], ends: Any, variables: Any, format: WeightFormat, clip: float
) -> tuple[Grid, Array]:
    """Scales ``[n, 1, f]`` and codes, as floats that pass gradients on."""
    (added, (upper, lower)), (most, least) = variables, ends
    low, high = LIMITS[format.weight]
    if format.symmetric:
        scale, zero = _positive(clip * upper * most / (high + 0.5)), None
    else:
        most, least = clip * upper * most, clip * lower * least
        scale = _positive((most - least) / (high - low))
        zero = _within(_straight(low - least / scale), low, high)
    ratio = tiles / scale + (0 if zero is None else zero) + added
    return Grid(scale, zero, format), _within(_straight(ratio), low, high)


@jax.custom_jvp
def _straight(x: Array) -> Array:
    """Round to the nearest integer; the gradient is that of ``x``."""
    return jnp.round(x)


_straight.defjvp(lambda primals, tangents: (jnp.round(primals[0]), tangents[0]))


def _within(x: Array, low: int, high: int) -> Array:
    """Clip; the gradient passes at the borders too, which integers often touch (JAX's own halves it
    there)."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def _positive(scale: Array) -> Array:
    """1 in place of scales of tiles of zeros."""
    return jnp.where(scale < jnp.sqrt(jnp.finfo(jnp.float32).tiny), 1.0, scale)
