"""Convolutions over images and what stands between them: group norms, residual blocks, halving and
doubling. Images are ``[b, i, j, o]``, channels last; kernels ``[out, in, rows, columns]``, as most
files hold them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.nn.linear import constant, parameter
from ziggurat.nn.mlp import ACTIVATIONS, Activation
from ziggurat.nn.precision import Precision

CHANNEL_AXES = ("mlp", "embed", None, None)
"""Logical axes of a kernel between inner channels."""


class Convolution(nnx.Module):
    r"""Cross-correlation :math:`y_{ijo} = b_o + \sum_{uvp} x_{si+u,\,sj+v,\,p} W_{opuv}`.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        size: rows and columns of the kernel.
        stride: ``s``, how far it moves.
        padding: rows and columns of zeros, before and after; the same for both directions.
        axes: logical names of the kernel's dimensions.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        axes: tuple[str | None, str | None, None, None] = CHANNEL_AXES,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        std = (channels_in * size * size) ** -0.5
        self.kernel = parameter(rngs, (channels_out, channels_in, size, size), axes, std, precision)
        self.bias = constant(0.0, (channels_out,), axes[:1], precision)
        self.stride = stride
        self.padding = ((size - 1) // 2, size // 2) if padding is None else padding

    def __call__(self, x: Float[Array, "b i j o"]) -> Float[Array, "b _ _ _"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        return y + self.bias[...].astype(x.dtype)[None, None, None]


class GroupNorm(nnx.Module):
    r"""Layer norm over the pixels and channels of each of some groups of channels, in float32.

    Paper: Wu and He 2018, https://arxiv.org/abs/1803.08494.
    """

    def __init__(self, channels: int, groups: int, *, eps: float, precision: Precision):
        self.scale = constant(1.0, (channels,), (None,), precision)
        self.bias = constant(0.0, (channels,), (None,), precision)
        self.groups, self.eps = groups, eps

    def __call__(self, x: Float[Array, "b i j o"]) -> Float[Array, "b i j o"]:
        b, _, _, channels = x.shape
        wide = x.astype(jnp.float32).reshape(b, -1, self.groups, channels // self.groups)
        centred = wide - jnp.mean(wide, axis=(1, 3), keepdims=True)
        variance = jnp.mean(centred * centred, axis=(1, 3), keepdims=True)
        normed = (centred * jax.lax.rsqrt(variance + self.eps)).reshape(x.shape)
        scale, bias = (
            p[...].astype(jnp.float32)[None, None, None] for p in (self.scale, self.bias)
        )
        return (normed * scale + bias).astype(x.dtype)


class ResidualBlock(nnx.Module):
    r""":math:`S(x) + C_2(\sigma(N_2(C_1(\sigma(N_1(x))))))`; the shortcut ``S`` is a 1 x 1
    convolution where channels change, and nothing elsewhere.

    Paper: He et al. 2016, https://arxiv.org/abs/1603.05027.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        groups: int,
        activation: Activation,
        *,
        eps: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def convolution(channels: int, size: int) -> Convolution:
            return Convolution(channels, channels_out, size, precision=precision, rngs=rngs)

        self.norm_in = GroupNorm(channels_in, groups, eps=eps, precision=precision)
        self.convolution_in = convolution(channels_in, 3)
        self.norm_out = GroupNorm(channels_out, groups, eps=eps, precision=precision)
        self.convolution_out = convolution(channels_out, 3)
        same = channels_in == channels_out
        self.shortcut = None if same else convolution(channels_in, 1)
        self.activation = activation

    def __call__(self, x: Float[Array, "b i j o"]) -> Float[Array, "b i j _"]:
        act = ACTIVATIONS[self.activation]
        y = self.convolution_in(act(self.norm_in(x)))
        y = self.convolution_out(act(self.norm_out(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Halving(nnx.Module):
    """Every second row and column, through a convolution that sees one more at the end."""

    def __init__(self, channels: int, *, precision: Precision, rngs: nnx.Rngs):
        self.convolution = Convolution(
            channels, channels, stride=2, padding=(0, 1), precision=precision, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b i j o"]) -> Float[Array, "b _ _ o"]:
        return self.convolution(x)


class Doubling(nnx.Module):
    """Every row and column twice, then a convolution."""

    def __init__(self, channels: int, *, precision: Precision, rngs: nnx.Rngs):
        self.convolution = Convolution(channels, channels, precision=precision, rngs=rngs)

    def __call__(self, x: Float[Array, "b i j o"]) -> Float[Array, "b _ _ o"]:
        return self.convolution(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
