"""Input of an encoder of audio: two convolutions over a log-mel spectrogram, and positions."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.core.errors import ShapeError
from ziggurat.nn.linear import add, constant, parameter
from ziggurat.nn.mlp import ACTIVATIONS
from ziggurat.nn.precision import Precision

SIZE = 3
"""Frames under a kernel."""
STRIDES = (1, 2)
"""Step in frames of each of the two convolutions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioInputConfig:
    """Config of an :class:`AudioInput`."""

    mel_bins: int
    """Mel bands of the spectrogram."""
    positions: int
    """Rows of the table of positions; the spectrogram has twice as many frames."""

    @property
    def frames(self) -> int:
        """Frames of the spectrogram."""
        return math.prod(STRIDES) * self.positions

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "AudioInput":
        return AudioInput(self, width, precision, rngs)


class AudioInput(nnx.Module):
    """Log-mel spectrograms to states, half as many as there are frames.

    Two convolutions of three frames with GELU behind each, the second with a stride of two, and
    positions that start as sinusoids.

    Paper: Radford et al. 2022 (Whisper), https://arxiv.org/abs/2212.04356, section 2.2.
    """

    def __init__(self, c: AudioInputConfig, width: int, precision: Precision, rngs: nnx.Rngs):
        self.config, self.compute = c, precision.compute

        def kernel(channels: int) -> nnx.Param:
            std = (SIZE * channels) ** -0.5
            return parameter(rngs, (width, channels, SIZE), ("embed", None, None), std, precision)

        self.kernels_1 = kernel(c.mel_bins)
        self.bias_1 = constant(0.0, (width,), ("embed",), precision)
        self.kernels_2 = kernel(width)
        self.bias_2 = constant(0.0, (width,), ("embed",), precision)
        table = jnp.asarray(sinusoids(c.positions, width), precision.param_dtype)
        self.positions = nnx.Param(table, axes=(None, "embed"))

    def __call__(self, spectrogram: Float[Array, "b m f"], mask: None = None) -> Array:
        """States ``[b, f / 2, d]`` of spectrograms.

        Args:
            spectrogram: log-mel energies by band and frame.
            mask: spectrograms have no padding: silence is part of them.

        Raises:
            ShapeError: another number of bands or frames, or a mask.
        """
        c = self.config
        if spectrogram.shape[1:] != (c.mel_bins, c.frames):
            bands, frames = spectrogram.shape[1:]
            raise ShapeError(
                "spectrogram",
                found=f"{bands} mel bands, {frames} frames",
                expected=f"{c.mel_bins} mel bands, {c.frames} frames",
            )
        if mask is not None:
            raise ShapeError("spectrogram", found="a mask of padding", expected="none")
        x = spectrogram.astype(self.compute).swapaxes(1, 2)
        parts = ((self.kernels_1, self.bias_1), (self.kernels_2, self.bias_2))
        for (kernel, bias), stride in zip(parts, STRIDES):
            x = jax.lax.conv_general_dilated(
                x,
                kernel[...].astype(x.dtype),
                window_strides=(stride,),
                padding=((SIZE // 2, SIZE // 2),),
                dimension_numbers=("NWC", "OIW", "NWC"),
            )
            x = ACTIVATIONS["gelu"](add(x, bias[...][None, None]))
        return add(x, self.positions[...][None])


def sinusoids(length: int, width: int) -> Float[np.ndarray, "t d"]:
    r"""Table of positions: :math:`\sin(p\,w_i)` in the first half of the channels and
    :math:`\cos(p\,w_i)` in the second, :math:`w_i = 10000^{-i / (d/2 - 1)}`.

    >>> sinusoids(2, 4).round(3).tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.8410000205039978, 0.0, 0.5400000214576721, 1.0]]
    """
    half = width // 2
    rates = np.exp(-math.log(10000) / max(1, half - 1) * np.arange(half))
    angles = np.arange(length)[:, None] * rates[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
