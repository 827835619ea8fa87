r"""AWQ: inputs with large activations are scaled up before rounding, so that they lose less.

For matrices :math:`W` that read the same inputs :math:`x`, rows are multiplied by :math:`s` and
inputs divided by it: :math:`\hat y = (x / s)\, Q(s \odot W)`. With :math:`a = \mathrm{mean}|x|`
the search takes :math:`s = a^\alpha`, scaled so that the largest times the smallest is 1, for the
one of 20 values of :math:`\alpha` in [0, 1) whose outputs differ least. Scales of tiles are then
clipped for the least squared error, weighted by the inputs' second moments.

The paper measures outputs of attention as a whole for queries, keys and values, and of the MLP for
gate and up; here it is the sum over the matrices' own outputs, which their inputs' second moments
decide.

Paper: Lin et al. 2023, https://arxiv.org/abs/2306.00978.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.kernels.linear import QuantizedWeight, WeightFormat
from ziggurat.quantize.grid import Grid
from ziggurat.quantize.inputs import InputMoments
from ziggurat.quantize.recipe import Rule
from ziggurat.quantize.rounding import Rounding
from ziggurat.quantize.weights import format_of

RATIOS = 20
"""Number of values of alpha that are tried."""


def factors(
    weights: Sequence[Float[Array, "d _"]],
    inputs: InputMoments,
    rules: Sequence[Rule],
    rounding: Rounding,
) -> Float[Array, " d"]:
    """Factors of the inputs whose outputs differ least; see
    :class:`ziggurat.quantize.inputs.FindFactors`."""
    mean = jnp.asarray(inputs.magnitude) / max(int(inputs.tokens), 1)
    formats = tuple(format_of(rule) for rule in rules)
    clips = tuple(rule.clip for rule in rules)
    return _factors(tuple(weights), mean, jnp.asarray(inputs.gram), formats, clips)


def round_matrix(
    weight: Float[Array, "d f"], inputs: InputMoments, rule: Rule, rounding: Rounding
) -> QuantizedWeight:
    """Round a matrix to nearest, its scales clipped; see
    :class:`ziggurat.quantize.inputs.RoundMatrix`."""
    return _clipped(weight, jnp.diagonal(jnp.asarray(inputs.gram)), format_of(rule), rule.clip)


@functools.partial(jax.jit, static_argnames=("formats", "clips"))
def _factors(
    weights: tuple[Array, ...],
    mean: Float[Array, " d"],
    gram: Float[Array, "d d"],
    formats: tuple[WeightFormat, ...],
    clips: tuple[float, ...],
) -> Float[Array, " d"]:
    def tried(best: tuple[Array, Array], ratio: Array) -> tuple[tuple[Array, Array], None]:
        scale = jnp.maximum(mean**ratio, 1e-4)
        scale = scale / jnp.sqrt(scale.max() * scale.min())
        loss = jnp.float32(0)
        for weight, format, clip in zip(weights, formats, clips):
            scaled = weight * scale[:, None]
            grid = Grid.widest(scaled, format, clip)
            off = grid.decode(grid.encode(scaled)) / scale[:, None] - weight
            loss += jnp.einsum("df,de,ef->", off, gram, off, precision="highest")
        better = loss < best[0]
        return (jnp.where(better, loss, best[0]), jnp.where(better, scale, best[1])), None

    start = (jnp.float32(jnp.inf), jnp.ones_like(mean))
    ratios = jnp.arange(RATIOS, dtype=jnp.float32) / RATIOS
    (_, found), _ = jax.lax.scan(tried, start, ratios)
    return found


@functools.partial(jax.jit, static_argnames=("format", "clip"))
def _clipped(
    weight: Array, moments: Float[Array, " d"], format: WeightFormat, clip: float
) -> QuantizedWeight:
    # where no input ever came, all weights count alike
    grid = Grid.fit(weight, format, clip, moments + 1e-6 * moments.mean() + 1e-30)
    return grid.quantized(grid.encode(weight), -2)
