"""Rotary position embedding and its long-context scalings."""

import dataclasses
import math
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pydantic import Discriminator

from ziggurat.core import config
from ziggurat.core.errors import ShapeError

Rotation = tuple[Float[Array, "b t r"], Float[Array, "b t r"]]
"""Cosines and sines of the angles, ``r`` half the channels that rotate."""


@config.node
class NoScaling:
    """Rotary scaling: none, frequencies as trained."""

    kind: Literal["none"] = "none"


@config.node
class LinearScaling:
    """Rotary scaling: positions divided by ``factor`` (Chen et al. 2023,
    https://arxiv.org/abs/2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float
    """How many times longer the context becomes."""


@config.node
class Llama3Scaling:
    """Rotary scaling: low frequencies divided by ``factor``, high ones kept, smooth between (Llama
    3.1, https://arxiv.org/abs/2407.21783)."""

    kind: Literal["llama3"] = "llama3"
    factor: float
    """How many times longer the context becomes."""
    low_freq_factor: float = 1.0
    """Wavelengths above ``original_length / low_freq_factor`` are scaled fully."""
    high_freq_factor: float = 4.0
    """Wavelengths below ``original_length / high_freq_factor`` are kept."""
    original_length: int = 8192
    """Context length in tokens before scaling."""


@config.node
class YarnScaling:
    """Rotary scaling: NTK-by-parts interpolation with attention temperature (YaRN, Peng et al.
    2023, https://arxiv.org/abs/2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    factor: float
    """How many times longer the context becomes."""
    original_length: int
    """Context length in tokens before scaling."""
    beta_fast: float = 32.0
    """Rotations over the original context above which a dimension is kept."""
    beta_slow: float = 1.0
    """Rotations below which a dimension is interpolated fully."""
    attention_factor: float | None = None
    """Multiplies cos and sin; default ``0.1 ln(factor) + 1``, or from ``mscale``."""
    mscale: float | None = None
    """Numerator's coefficient of the attention factor (DeepSeek)."""
    mscale_all_dim: float | None = None
    """Denominator's coefficient of the attention factor (DeepSeek)."""
    truncate: bool = True
    """Round the two corner dimensions outward to whole dimensions."""


RopeScaling = Annotated[
    NoScaling | LinearScaling | Llama3Scaling | YarnScaling, Discriminator("kind")
]


@config.node
class RopeConfig:
    """Rotary position embedding."""

    theta: float = 10000.0
    """Base of the geometric series of wavelengths."""
    scaling: RopeScaling = dataclasses.field(default_factory=NoScaling)
    """Long-context scaling."""
    sections: tuple[int, ...] = ()
    """Frequencies by axis of the position (time, height, width), for models of images and video:
    their sum is half the channels that rotate. Empty: positions have one axis."""
    interleaved: bool = False
    """Axes take turns from the first frequency on (Qwen3-VL), rather than follow each other
    (Qwen2-VL)."""

    def __post_init__(self):
        whole = all(size >= 0 for size in self.sections)
        config.require(whole, "sections", self.sections, "numbers >= 0")


def frequencies(rope: RopeConfig, dim: int) -> tuple[np.ndarray, float]:
    r"""Inverse wavelengths ``[dim / 2]`` (radians per token) and the factor on cos and sin.

    Without scaling :math:`\omega_i = \theta^{-2i/\mathrm{dim}}`.

    >>> frequencies(RopeConfig(theta=100.0), 4)[0].tolist()
    [1.0, 0.10000000149011612]
    """
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    omega = (1.0 / np.float32(rope.theta) ** exponent).astype(np.float32)
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        return omega / np.float32(scaling.factor), 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(omega, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn(omega, scaling, rope.theta, dim), _yarn_attention_factor(scaling)
    return omega, 1.0


def axis_of_frequency(rope: RopeConfig, count: int) -> np.ndarray:
    """Axis of the position by which each of ``count`` frequencies turns.

    Papers: Wang et al. 2024 (Qwen2-VL), https://arxiv.org/abs/2409.12191, section 2.1; interleaved:
    Bai et al. 2025 (Qwen3-VL), https://arxiv.org/abs/2511.21631, section 2.1.

    >>> axis_of_frequency(RopeConfig(sections=(2, 1, 1)), 4).tolist()
    [0, 0, 1, 2]
    >>> axis_of_frequency(RopeConfig(sections=(2, 1, 1), interleaved=True), 4).tolist()
    [0, 1, 2, 0]
    """
    axes = np.repeat(np.arange(len(rope.sections)), rope.sections)
    if rope.interleaved:
        axes = np.zeros(count, int)
        for axis, size in enumerate(rope.sections[1:], 1):
            axes[axis : len(rope.sections) * size : len(rope.sections)] = axis
    if sum(rope.sections) != count:
        raise ShapeError(
            "rotary sections", found=rope.sections, expected=f"{count} frequencies together"
        )
    return axes


def rotation(
    positions: Int[Array, "b t"] | Int[Array, "b t a"], rope: RopeConfig, dim: int
) -> Rotation:
    """Cosines and sines of the angles, float32, ``r = dim / 2``.

    Args:
        positions: of one axis, or of as many as ``rope.sections`` has.
        rope: the settings; where positions have one axis, ``sections`` have no effect.
        dim: channels that rotate.

    Raises:
        ShapeError: the numbers of axes or of frequencies differ.
    """
    omega, factor = frequencies(rope, dim)
    axes = axis_of_frequency(rope, len(omega)) if rope.sections else np.zeros(0, int)
    if positions.ndim == 2:
        turns = positions[..., None]
    elif positions.shape[2] == len(rope.sections):
        turns = positions[..., axes]
    else:
        raise ShapeError(
            "rotary positions",
            found=f"{positions.shape[2]} axes",
            expected=f"{len(rope.sections)}, as many as the model's rotary sections",
        )
    angles = turns.astype(jnp.float32) * jnp.asarray(omega)[None, None, :]
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(
    x: Float[Array, "b t h c"], cos: Float[Array, "b t r"], sin: Float[Array, "b t r"]
) -> Float[Array, "b t h c"]:
    """Rotate channel pairs ``(i, i + r)`` of every head (the GPT-NeoX order, as transformers);
    channels from ``2 r`` on pass as they are.

    Paper: Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """
    cos, sin = (angle[:, :, None, :].astype(x.dtype) for angle in (cos, sin))
    r = cos.shape[-1]
    first, second, *rest = jnp.split(x, (r, 2 * r) if 2 * r < x.shape[-1] else (r,), axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, *rest], axis=-1)


def _llama3(omega: np.ndarray, s: Llama3Scaling) -> np.ndarray:
    wavelength = 2 * math.pi / omega
    smooth = (s.original_length / wavelength - s.low_freq_factor) / (
        s.high_freq_factor - s.low_freq_factor
    )
    between = (1 - smooth) * omega / s.factor + smooth * omega
    long = wavelength > s.original_length / s.low_freq_factor
    short = wavelength < s.original_length / s.high_freq_factor
    return np.where(long, omega / s.factor, np.where(short, omega, between)).astype(np.float32)


def _yarn(omega: np.ndarray, s: YarnScaling, theta: float, dim: int) -> np.ndarray:
    def dimension_of(rotations: float) -> float:
        return dim * math.log(s.original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(s.beta_fast), dimension_of(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = max(high - low, 0.001)
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / span, 0, 1)
    return (omega / s.factor * ramp + omega * (1 - ramp)).astype(np.float32)


def _yarn_attention_factor(s: YarnScaling) -> float:
    def coefficient(mscale: float) -> float:
        return 0.1 * mscale * math.log(s.factor) + 1.0 if s.factor > 1 else 1.0

    if s.attention_factor is not None:
        return s.attention_factor
    if s.mscale and s.mscale_all_dim:
        return coefficient(s.mscale) / coefficient(s.mscale_all_dim)
    return coefficient(1.0)
