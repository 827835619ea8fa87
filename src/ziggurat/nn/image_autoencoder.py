"""The autoencoder of latent diffusion: images to a Gaussian over small latents, and back.

Paper: Rombach et al. 2022, https://arxiv.org/abs/2112.10752, section 3.1.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule, Bidirectional
from ziggurat.nn.convolution import (
    Convolution,
    Doubling,
    GroupNorm,
    Halving,
    ResidualBlock,
)
from ziggurat.nn.mlp import ACTIVATIONS, Activation
from ziggurat.nn.precision import Precision

NORM_EPS = 1e-6
LARGEST_LOG_VARIANCE, SMALLEST_LOG_VARIANCE = 20.0, -30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageAutoencoderConfig:
    """Config of an autoencoder, as a family fixes it."""

    in_channels: int
    out_channels: int
    latent_channels: int
    channels: tuple[int, ...]
    """Channels of each level, finest first; each level but the last halves rows and columns."""
    blocks_per_level: int
    """Residual blocks of the encoder's levels; the decoder's have one more."""
    groups: int
    """Groups of the norms."""
    activation: Activation
    middle_attention: bool
    """Attention between the coarsest level's two blocks."""
    quant: bool
    """A 1 x 1 convolution over the encoder's result."""
    post_quant: bool
    """A 1 x 1 convolution before the decoder."""


class PixelAttention(nnx.Module):
    """Every pixel attends to every other, one head over all channels, added to what was there."""

    def __init__(self, channels: int, groups: int, *, precision: Precision, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups, eps=NORM_EPS, precision=precision)
        attention = GroupedAttentionConfig(
            heads=1, kv_heads=1, head_dim=channels, bias=True, out_bias=True
        )
        self.attention = attention.build(channels, channels**-0.5, precision, rngs)
        self.rule = AttentionRule(channels**-0.5)

    def __call__(self, x: Float[Array, "b i j o"]) -> Float[Array, "b i j o"]:
        b, height, width, channels = x.shape
        rows = self.norm(x).reshape(b, height * width, channels)
        positions = jnp.broadcast_to(jnp.arange(height * width)[None], rows.shape[:2])
        mixed, _ = self.attention(rows, positions, None, self.rule, Bidirectional(), ())
        return x + mixed.reshape(x.shape)


class Chain(nnx.Module):
    """Layers one after the other, each under a name that tells its place, such as
    ``level_1_block_0``."""

    def __init__(self, c: ImageAutoencoderConfig):
        self.config = c
        self.order: tuple[str, ...] = ()

    def add(self, name: str, layer: nnx.Module) -> None:
        """Append a layer."""
        setattr(self, name, layer)
        self.order = (*self.order, name)

    def add_middle(self, precision: Precision, rngs: nnx.Rngs) -> None:
        """Two blocks at the coarsest level, with attention between them."""
        c = self.config
        channels = c.channels[-1]
        self.add("middle_block_0", block(c, channels, channels, precision, rngs))
        if c.middle_attention:
            attention = PixelAttention(channels, c.groups, precision=precision, rngs=rngs)
            self.add("middle_attention", attention)
        self.add("middle_block_1", block(c, channels, channels, precision, rngs))

    def __call__(self, x: Float[Array, "b i j o"]) -> Float[Array, "b _ _ _"]:
        for name in self.order:
            x = getattr(self, name)(x)
            if name == "norm_out":
                x = ACTIVATIONS["silu"](x)
        return x


class ImageEncoder(Chain):
    """Images ``[b, i, j, o]`` to means and log-variances of latents, one after the other."""

    def __init__(self, c: ImageAutoencoderConfig, precision: Precision, rngs: nnx.Rngs):
        super().__init__(c)
        channels = c.channels[0]
        self.add("convolution_in", end_convolution(c.in_channels, channels, 3, precision, rngs))
        for level, wider in enumerate(c.channels):
            for number in range(c.blocks_per_level):
                self.add(
                    f"level_{level}_block_{number}", block(c, channels, wider, precision, rngs)
                )
                channels = wider
            if level < len(c.channels) - 1:
                self.add(
                    f"level_{level}_halving", Halving(channels, precision=precision, rngs=rngs)
                )
        self.add_middle(precision, rngs)
        latents = 2 * c.latent_channels
        self.add("norm_out", GroupNorm(channels, c.groups, eps=NORM_EPS, precision=precision))
        self.add("convolution_out", end_convolution(channels, latents, 3, precision, rngs))
        if c.quant:
            self.add("quant", end_convolution(latents, latents, 1, precision, rngs))


class ImageDecoder(Chain):
    """Latents ``[b, i, j, o]`` to images."""

    def __init__(self, c: ImageAutoencoderConfig, precision: Precision, rngs: nnx.Rngs):
        super().__init__(c)
        channels, latents = c.channels[-1], c.latent_channels
        if c.post_quant:
            self.add("post_quant", end_convolution(latents, latents, 1, precision, rngs))
        self.add("convolution_in", end_convolution(latents, channels, 3, precision, rngs))
        self.add_middle(precision, rngs)
        for level, narrower in enumerate(reversed(c.channels)):
            for number in range(c.blocks_per_level + 1):
                self.add(
                    f"level_{level}_block_{number}", block(c, channels, narrower, precision, rngs)
                )
                channels = narrower
            if level < len(c.channels) - 1:
                self.add(
                    f"level_{level}_doubling", Doubling(channels, precision=precision, rngs=rngs)
                )
        self.add("norm_out", GroupNorm(channels, c.groups, eps=NORM_EPS, precision=precision))
        self.add("convolution_out", end_convolution(channels, c.out_channels, 3, precision, rngs))


class ImageAutoencoder(nnx.Module):
    """Encoder and decoder; latents are as the networks have them, before any scaling."""

    def __init__(self, c: ImageAutoencoderConfig, *, precision: Precision, rngs: nnx.Rngs):
        self.encoder = ImageEncoder(c, precision, rngs)
        self.decoder = ImageDecoder(c, precision, rngs)
        self.compute = precision.compute

    def encode(
        self, images: Float[Array, "b _ _ _"]
    ) -> tuple[Float[Array, "b i j o"], Float[Array, "b i j o"]]:
        """Means and standard deviations of the latents."""
        mean, log_variance = jnp.split(self.encoder(images.astype(self.compute)), 2, axis=-1)
        bounded = jnp.clip(log_variance, SMALLEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
        return mean, jnp.exp(0.5 * bounded)

    def decode(self, latents: Float[Array, "b i j o"]) -> Float[Array, "b _ _ _"]:
        """Images of latents."""
        return self.decoder(latents.astype(self.compute))


def block(
    c: ImageAutoencoderConfig,
    channels_in: int,
    channels_out: int,
    precision: Precision,
    rngs: nnx.Rngs,
) -> ResidualBlock:
    """A residual block as the config has them."""
    return ResidualBlock(
        channels_in,
        channels_out,
        c.groups,
        c.activation,
        eps=NORM_EPS,
        precision=precision,
        rngs=rngs,
    )


def end_convolution(
    channels_in: int, channels_out: int, size: int, precision: Precision, rngs: nnx.Rngs
) -> Convolution:
    """A convolution at an end of a network, where channels are few: the same on all devices."""
    axes = (None, None, None, None)
    return Convolution(channels_in, channels_out, size, axes=axes, precision=precision, rngs=rngs)
