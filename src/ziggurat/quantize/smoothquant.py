r"""SmoothQuant: outliers of activations move into weights, so that both round well.

For matrices that read the same inputs :math:`x` behind a norm, rows are multiplied by
:math:`s_j = \max|x_j|^\alpha / \max|W_j|^{1-\alpha}` and inputs divided by it, folded into the
norm. Weights are then rounded to nearest.

Paper: Xiao et al. 2022, https://arxiv.org/abs/2211.10438, section 4.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.linear import QuantizedWeight
from ziggurat.quantize.inputs import InputMoments
from ziggurat.quantize.recipe import Rule
from ziggurat.quantize.rounding import Rounding
from ziggurat.quantize.weights import format_of, quantize_array

_LEAST = 1e-5
"""Smallest magnitude and factor, as in the paper's code."""


def factors(
    weights: Sequence[Float[Array, "d _"]],
    inputs: InputMoments,
    rules: Sequence[Rule],
    rounding: Rounding,
) -> Float[Array, " d"]:
    """Factors of the inputs; see :class:`ziggurat.quantize.inputs.FindFactors`.

    Raises:
        ConfigError: the recipe leaves activations floats, which have no outliers to lose.
    """
    for rule in rules:
        if rule.activation is None:
            raise ConfigError(
                "--method smoothquant",
                found=f"{rule.weight} weights with float activations",
                expected="quantised activations",
                fix="use --recipe w8a8, or another method",
            )
    by_row = jnp.stack([jnp.abs(weight).max(axis=1) for weight in weights]).max(axis=0)
    largest = jnp.maximum(jnp.asarray(inputs.largest), _LEAST)
    share = rounding.smoothing
    return jnp.maximum(largest**share / jnp.maximum(by_row, _LEAST) ** (1 - share), _LEAST)


def round_matrix(
    weight: Float[Array, "d f"], inputs: InputMoments, rule: Rule, rounding: Rounding
) -> QuantizedWeight:
    """Round a matrix to nearest; see :class:`ziggurat.quantize.inputs.RoundMatrix`."""
    return _nearest(weight, format_of(rule), rule.clip)


_nearest = jax.jit(
    lambda weight, format, clip: quantize_array(weight, format, -2, clip), static_argnums=(1, 2)
)
