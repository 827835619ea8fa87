"""Normalisation layers; statistics in float32."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.nn.linear import constant, multiply
from ziggurat.nn.precision import Precision

Axes = str | tuple[str, ...]
"""Logical name of a dimension, or several."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Config of a norm."""

    kind: Literal["rms", "layer"] = "rms"
    """:class:`RMSNorm` or :class:`LayerNorm`."""
    eps: float
    """Added to the mean square."""
    offset: float = 0.0
    """Added to the stored scale; Gemma and Nemotron store it around zero and add one."""
    bias: bool = True
    """Whether a layer norm has a bias; Command and ModernBERT have none."""

    @property
    def has_bias(self) -> bool:
        """Whether the norm has a bias beside its scale."""
        return self.kind == "layer" and self.bias

    def build(
        self, width: int | tuple[int, ...], precision: Precision, axis: Axes = "embed"
    ) -> "RMSNorm | LayerNorm":
        """The module, over a last dimension of ``width`` whose logical name is ``axis``; with
        several widths and names, scales differ along the dimensions before it too."""
        kwargs = {"eps": self.eps, "precision": precision, "offset": self.offset, "axis": axis}
        if self.kind == "layer":
            return LayerNorm(width, bias=self.bias, **kwargs)
        return RMSNorm(width, **kwargs)


class RMSNorm(nnx.Module):
    r"""Root-mean-square norm :math:`y = x / \sqrt{\mathrm{mean}(x^2) + \epsilon} \cdot (o + g)`.

    With an offset ``o`` the product is taken in float32 before ``y`` gets the type of ``x``.
    Paper: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    def __init__(
        self,
        width: int | tuple[int, ...],
        *,
        eps: float,
        precision: Precision,
        offset: float = 0.0,
        axis: Axes = "embed",
    ):
        self.scale = _vector(1.0 - offset, width, axis, precision)
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        normed = root_mean_square_normed(x.astype(jnp.float32), self.eps)
        scale = _broadcast(self.scale[...], x)
        if self.offset:
            return (normed * (self.offset + scale.astype(jnp.float32))).astype(x.dtype)
        return multiply(normed.astype(x.dtype), scale)


class LayerNorm(nnx.Module):
    r"""Layer norm :math:`y = (x - \mu) / \sqrt{\sigma^2 + \epsilon} \cdot (o + g) + b` over the
    last dimension.

    Paper: Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(
        self,
        width: int | tuple[int, ...],
        *,
        eps: float,
        precision: Precision,
        bias: bool = True,
        offset: float = 0.0,
        axis: Axes = "embed",
    ):
        self.scale = _vector(1.0 - offset, width, axis, precision)
        self.bias = _vector(0.0, width, axis, precision) if bias else None
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        scale = _broadcast(self.scale[...], x).astype(jnp.float32)
        y = standardised(x, self.eps) * (scale + self.offset if self.offset else scale)
        if self.bias is not None:
            y = y + _broadcast(self.bias[...], x).astype(jnp.float32)
        return y.astype(x.dtype)


def _vector(
    value: float, width: int | tuple[int, ...], axis: Axes, precision: Precision
) -> nnx.Param:
    widths = (width,) if isinstance(width, int) else width
    return constant(value, widths, (axis,) if isinstance(axis, str) else axis, precision)


def _broadcast(vector: Float[Array, "..."], x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """With as many dimensions as ``x``, ones first."""
    return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)


def root_mean_square_normed(x: Float[Array, "... d"], eps: float) -> Float[Array, "... d"]:
    r""":math:`x / \sqrt{\mathrm{mean}(x^2) + \epsilon}` over the last dimension, in float32: a
    root-mean-square norm without parameters."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype)


def standardised(x: Float[Array, "... d"], eps: float) -> Float[Array, "... d"]:
    r""":math:`(x - \mu) / \sqrt{\sigma^2 + \epsilon}` over the last dimension, in float32: a layer
    norm without parameters."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps)
