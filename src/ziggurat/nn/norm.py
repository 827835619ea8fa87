"""Normalisation layers; statistics in float32."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.nn.linear import constant
from ziggurat.nn.precision import Precision


class RMSNorm(nnx.Module):
    r"""Root-mean-square norm :math:`y = x / \sqrt{\mathrm{mean}(x^2) + \epsilon} \cdot g`.

    Paper: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    def __init__(self, width: int, *, eps: float, precision: Precision):
        self.scale = constant(1.0, (width,), ("embed",), precision)
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return (normed.astype(x.dtype) * scale.astype(x.dtype)).astype(x.dtype)
