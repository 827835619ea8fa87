"""Rotary position embedding and its long-context scalings.

Two scalings depend on the length of a sequence, :class:`DynamicScaling` and
:class:`LongRopeScaling`. A key that is cached was rotated when it was computed, so a choice that
changes while a sequence grows makes earlier and later keys disagree. Whoever attends says which
length counts (``AttentionContext.context_length``):

=====================  ==========================================================
context                length
=====================  ==========================================================
training, scoring      of the sequence's own document, as transformers has it
a static cache         of the cache: the longest that the sequence may become
the serving engine     the longest sequence that the engine allows, as in vLLM
=====================  ==========================================================

With a cache, results are those of one pass whose length was known from the start.
``context_length`` in the scaling fixes the choice for all of them.
"""

import dataclasses
import math
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num
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


@config.node
class NtkScaling:
    """Base multiplied by ``alpha ** (d / (d - 2))`` for ``d`` channels that rotate (NTK-aware,
    https://arxiv.org/abs/2309.00071, section 3.1; Hunyuan)."""

    kind: Literal["ntk"] = "ntk"
    alpha: float
    """How many times longer the context becomes."""


@config.node
class DynamicScaling:
    """Base multiplied by ``(s n / L - s + 1) ** (d / (d - 2))`` for sequences of ``n`` tokens
    beyond the original ``L`` (dynamic NTK, https://arxiv.org/abs/2309.00071, section 3.3)."""

    kind: Literal["dynamic"] = "dynamic"
    factor: float
    """``s``: how fast the base grows with the length."""
    original_length: int
    """``L``: longest sequence in tokens that nothing changes for."""
    context_length: int | None = None
    """Length in tokens to rotate for, whatever the sequence's own; default see above."""


@config.node
class LongRopeScaling:
    """A factor for each frequency, from one list up to the original length and from another beyond
    it (LongRoPE, Ding et al. 2024, https://arxiv.org/abs/2402.13753; Phi-3)."""

    kind: Literal["longrope"] = "longrope"
    short_factor: tuple[float, ...]
    """Divisors of the frequencies up to ``original_length``."""
    long_factor: tuple[float, ...]
    """Divisors beyond."""
    original_length: int
    """Context length in tokens before scaling."""
    attention_factor: float = 1.0
    """Multiplies cos and sin, at every length."""
    context_length: int | None = None
    """Length in tokens to rotate for, whatever the sequence's own; default see above."""

    def __post_init__(self):
        short, long = len(self.short_factor), len(self.long_factor)
        config.require(short == long, "long_factor", f"{long} numbers", f"{short} numbers")


@config.node
class ProportionalScaling:
    """The first ``share`` of the frequencies, those of short wavelengths, are kept; the other
    channels do not rotate (Gemma 4)."""

    kind: Literal["proportional"] = "proportional"
    share: float
    """Share of the frequencies that are kept."""
    factor: float = 1.0
    """Divides those that are kept."""

    def __post_init__(self):
        config.require(0 < self.share <= 1, "share", self.share, "a number above 0, at most 1")
        config.require(self.factor > 0, "factor", self.factor, "a number > 0")


RopeScaling = Annotated[
    NoScaling
    | LinearScaling
    | Llama3Scaling
    | YarnScaling
    | NtkScaling
    | DynamicScaling
    | LongRopeScaling
    | ProportionalScaling,
    Discriminator("kind"),
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
    """Axes take turns from the first frequency on (Qwen3-VL; Pixtral's tower), rather than follow
    each other (Qwen2-VL)."""

    def __post_init__(self):
        whole = all(size >= 0 for size in self.sections)
        config.require(whole, "sections", self.sections, "numbers >= 0")


def frequencies(rope: RopeConfig, dim: int) -> tuple[np.ndarray, float]:
    r"""Inverse wavelengths ``[dim / 2]`` (radians per token) and the factor on cos and sin.

    Without scaling :math:`\omega_i = \theta^{-2i/\mathrm{dim}}`. Scalings that depend on a
    sequence's length give those of short sequences, :func:`frequencies_of_length` the others.

    >>> frequencies(RopeConfig(theta=100.0), 4)[0].tolist()
    [1.0, 0.10000000149011612]
    """
    scaling, theta = rope.scaling, rope.theta
    if isinstance(scaling, NtkScaling):
        theta *= scaling.alpha ** _ntk_exponent(dim)
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    omega = (1.0 / np.float32(theta) ** exponent).astype(np.float32)
    if isinstance(scaling, LinearScaling):
        return omega / np.float32(scaling.factor), 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(omega, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn(omega, scaling, rope.theta, dim), _yarn_attention_factor(scaling)
    if isinstance(scaling, LongRopeScaling):
        _check_factors(scaling, dim)
        return omega / np.asarray(scaling.short_factor, np.float32), scaling.attention_factor
    if isinstance(scaling, ProportionalScaling):
        kept = np.arange(dim // 2) < int(scaling.share * dim // 2)
        return np.where(kept, omega / np.float32(scaling.factor), np.float32(0)), 1.0
    return omega, 1.0


def frequencies_of_length(
    rope: RopeConfig, dim: int, length: Int[Array, "b t"] | int
) -> Float[Array, "#b #t r"]:
    """Inverse wavelengths for sequences of these lengths; where the scaling depends on none, those
    of :func:`frequencies`."""
    s, (omega, _) = rope.scaling, frequencies(rope, dim)
    if not isinstance(s, DynamicScaling | LongRopeScaling):
        return jnp.asarray(omega)[None, None]
    length = jnp.asarray(length if s.context_length is None else s.context_length)
    length = length.reshape(length.shape or (1, 1))[..., None]
    short = jnp.asarray(omega)[None, None]
    if isinstance(s, LongRopeScaling):
        unscaled = frequencies(RopeConfig(theta=rope.theta), dim)[0]
        long = jnp.asarray(unscaled / np.asarray(s.long_factor, np.float32))[None, None]
        return jnp.where(length > s.original_length, long, short)
    beyond = jnp.maximum(length, s.original_length).astype(jnp.float32)
    grown = s.factor * beyond / s.original_length - (s.factor - 1)
    exponent = jnp.arange(0, dim, 2, dtype=jnp.float32)[None, None] / dim
    return short * grown ** (-_ntk_exponent(dim) * exponent)


def depends_on_length(rope: RopeConfig, longest: int | None = None) -> bool:
    """Whether the angles of a position depend on the length of its sequence, where none is longer
    than ``longest``."""
    s = rope.scaling
    if not isinstance(s, DynamicScaling | LongRopeScaling) or s.context_length is not None:
        return False
    return longest is None or longest > s.original_length


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
    positions: Int[Array, "b t"] | Int[Array, "b t a"],
    rope: RopeConfig,
    dim: int,
    length: Int[Array, "b t"] | int = 0,
) -> Rotation:
    """Cosines and sines of the angles, float32, ``r = dim / 2``.

    Args:
        positions: of one axis, or of as many as ``rope.sections`` has.
        rope: the settings; where positions have one axis, ``sections`` have no effect.
        dim: channels that rotate.
        length: of the sequences, for scalings that depend on it.

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
    angles = turns.astype(jnp.float32) * frequencies_of_length(rope, dim, length)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def axial_rotation(positions: Num[Array, "b n a"], rope: RopeConfig, dim: int) -> Rotation:
    """Cosines and sines where each axis turns its own equal share of the channels (patches of
    images by row and column).

    All axes turn through the same frequencies; with ``rope.interleaved`` they share one series of
    them, of which each takes every ``a``-th (Pixtral, https://arxiv.org/abs/2410.07073, section
    2.1).

    Args:
        positions: by axis; whole numbers, or fractions of an image.
        rope: the settings.
        dim: channels that rotate, of all axes together.

    Raises:
        ShapeError: the channels do not divide into pairs for each axis.

    >>> axial_rotation(jnp.zeros((1, 5, 2), int), RopeConfig(), 8)[0].shape
    (1, 5, 4)
    """
    axes = positions.shape[2]
    if dim % (2 * axes):
        raise ShapeError(
            "rotary channels", found=dim, expected=f"a multiple of {2 * axes}, for {axes} axes"
        )
    omega, factor = frequencies(rope, dim if rope.interleaved else dim // axes)
    each = omega.reshape(-1, axes).T if rope.interleaved else omega[None]
    angles = positions[..., None].astype(jnp.float32) * each[None, None]
    angles = angles.reshape(*positions.shape[:2], dim // 2)
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


def _ntk_exponent(dim: int) -> float:
    """Power of the stretch by which the base grows; with two channels there is only one frequency,
    which no base changes."""
    return dim / (dim - 2) if dim > 2 else 0.0


def _check_factors(s: LongRopeScaling, dim: int) -> None:
    if len(s.short_factor) != dim // 2:
        raise ShapeError(
            "rotary scaling longrope",
            found=f"{len(s.short_factor)} factors",
            expected=f"{dim // 2}, one for each pair of channels that rotates",
        )


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
