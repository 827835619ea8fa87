"""Normalisation layers; statistics in float32."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.nn.linear import constant, multiply
from ziggurat.nn.precision import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Config of a norm."""

    kind: Literal["rms", "layer"] = "rms"
    """:class:`RMSNorm` or :class:`LayerNorm`."""
    eps: float
    """Added to the mean square."""
    offset: float = 0.0
    """Added to the stored scale of an RMS norm; Gemma stores it around zero and adds one."""
    bias: bool = True
    """Whether a layer norm has a bias; Command and ModernBERT have none."""

    def build(self, width: int, precision: Precision, axis: str = "embed") -> "RMSNorm | LayerNorm":
        """The module, over a last dimension of ``width`` whose logical name is ``axis``."""
        if self.kind == "layer":
            return LayerNorm(width, eps=self.eps, bias=self.bias, precision=precision, axis=axis)
        return RMSNorm(width, eps=self.eps, precision=precision, offset=self.offset, axis=axis)


class RMSNorm(nnx.Module):
    r"""Root-mean-square norm :math:`y = x / \sqrt{\mathrm{mean}(x^2) + \epsilon} \cdot (o + g)`.

    With an offset ``o`` the product is taken in float32 before ``y`` gets the type of ``x``.
    Paper: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    def __init__(
        self,
        width: int,
        *,
        eps: float,
        precision: Precision,
        offset: float = 0.0,
        axis: str = "embed",
    ):
        self.scale = constant(1.0 - offset, (width,), (axis,), precision)
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        if self.offset:
            return (normed * (self.offset + scale.astype(jnp.float32))).astype(x.dtype)
        return multiply(normed.astype(x.dtype), scale)


class LayerNorm(nnx.Module):
    r"""Layer norm :math:`y = (x - \mu) / \sqrt{\sigma^2 + \epsilon} \cdot g + b` over the last
    dimension.

    Paper: Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(
        self,
        width: int,
        *,
        eps: float,
        precision: Precision,
        bias: bool = True,
        axis: str = "embed",
    ):
        self.scale = constant(1.0, (width,), (axis,), precision)
        self.bias = constant(0.0, (width,), (axis,), precision) if bias else None
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        shape = (1,) * (x.ndim - 1) + (-1,)
        y = standardised(x, self.eps) * self.scale[...].reshape(shape).astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].reshape(shape).astype(jnp.float32)
        return y.astype(x.dtype)


def standardised(x: Float[Array, "... d"], eps: float) -> Float[Array, "... d"]:
    r""":math:`(x - \mu) / \sqrt{\sigma^2 + \epsilon}` over the last dimension, in float32: a layer
    norm without parameters."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps)
