"""Weights rounded to the nearest values of a format, once or in every forward pass of training."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.kernels.linear.quantized import QuantizedWeight, WeightFormat, qtype
from ziggurat.kernels.linear.weight_types import TYPES, nearest


def quantize_array(
    weight: Float[Array, "..."], format: WeightFormat, axis: int, clip: float = 1.0
) -> QuantizedWeight:
    """Quantise one matrix, or a stack of them: with Qwix where it knows the type, else to the
    nearest level.

    Args:
        weight: ``[..., d, f]`` for ``axis`` -2, ``[v, d]`` for -1.
        format: what it becomes.
        axis: over which matmuls sum.
        clip: share of the largest magnitude that is kept.
    """
    axis %= weight.ndim
    if qtype(format.weight) is None:
        low, high, scale = nearest(weight, TYPES[format.weight], axis, format.tile_size, clip)
        return QuantizedWeight(low, scale, None, format, axis - weight.ndim, high=high)
    import qwix

    tiles = {} if format.tile_size is None else {axis: format.tile_size}
    method = "absmax" if format.symmetric else "minmax"
    array = qwix.quantize(
        weight,
        qtype(format.weight),
        channelwise_axes=[other for other in range(weight.ndim) if other != axis],
        tiled_axes=tiles,
        calibration_method=method if clip == 1.0 else f"{method},{clip}",
    )
    return QuantizedWeight.of(array, format, axis - weight.ndim)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def fake_quantized(
    weight: Float[Array, "..."], format: WeightFormat, axis: int, clip: float = 1.0
) -> Float[Array, "..."]:
    """Round a weight and give it back as floats; the gradient passes as if it were not rounded.

    Scales and values are those of :func:`quantize_array` in float32.

    Source: Bengio et al. 2013, https://arxiv.org/abs/1308.3432 (the straight-through estimator).

    >>> weight = jnp.array([[0.9], [-2.0], [0.4], [3.75]])
    >>> fake_quantized(weight, WeightFormat("int4"), -2).ravel().tolist()
    [1.0, -2.0, 0.5, 3.5]
    """
    made = quantize_array(weight.astype(jnp.float32), format, axis, clip)
    return made.dequantized().astype(weight.dtype)


@fake_quantized.defjvp
def _straight_through(format, axis, clip, primals, tangents):  # pyright: ignore
    return fake_quantized(primals[0], format, axis, clip), tangents[0]
