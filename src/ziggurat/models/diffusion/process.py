"""How images are mixed with noise, and what a model predicts of the mixture.

At time ``t`` a sample is :math:`x_t = \\alpha_t x_0 + \\sigma_t \\epsilon`. Two families of
:math:`\\alpha, \\sigma` are in use: the thousand discrete levels of DDPM, and the straight line of
flow matching. Training draws from them, samplers walk them back; both read what stands here.

>>> process = DiscreteNoise()
>>> alpha, sigma = process.levels()
>>> float(alpha[0] ** 2 + sigma[0] ** 2), round(float(alpha[-1]), 4)
(1.0, 0.0064)
"""

import functools
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float

from ziggurat.core import config

Prediction = Literal["epsilon", "v", "x0", "flow"]
"""Target of a model's output: the noise; :math:`\\alpha\\epsilon - \\sigma x_0`; the image; or
:math:`\\epsilon - x_0`."""


@config.node
class DiscreteNoise:
    r"""DDPM's chain: :math:`\alpha_t^2 = \prod_{s \le t} (1 - \beta_s)`,
    :math:`\sigma_t^2 = 1 - \alpha_t^2`.

    Paper: Ho et al. 2020, https://arxiv.org/abs/2006.11239; ``v``: Salimans and Ho 2022,
    https://arxiv.org/abs/2202.00512; cosine: Nichol and Dhariwal 2021,
    https://arxiv.org/abs/2102.09672.
    """

    kind: Literal["ddpm"] = "ddpm"
    levels_count: int = 1000
    """Noise levels; a model's time is the number of its level."""
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """How the betas grow; ``scaled_linear``: their square roots do (Stable Diffusion)."""
    beta_start: float = 1e-4
    """First beta; ``cosine`` has its own."""
    beta_end: float = 0.02
    """Last beta."""
    prediction: Literal["epsilon", "v", "x0"] = "epsilon"
    """Target that the model predicts: the noise, a mixture of noise and image, or the image."""
    zero_terminal_snr: bool = False
    """Shift the levels so that the last is noise alone (Lin et al. 2023,
    https://arxiv.org/abs/2305.08891); not together with ``epsilon``, which says nothing there."""

    def __post_init__(self):
        config.require(self.levels_count >= 2, "levels_count", self.levels_count, "at least 2")
        rising = 0 < self.beta_start <= self.beta_end < 1
        found = f"{self.beta_start} to {self.beta_end}"
        config.require(rising, "beta_start", found, "0 < beta_start <= beta_end < 1")
        clear = not (self.zero_terminal_snr and self.prediction == "epsilon")
        config.require(clear, "prediction", self.prediction, "v or x0 with zero_terminal_snr")

    def levels(self) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
        r""":math:`\alpha_t` and :math:`\sigma_t` of every level, float64."""
        kept = alphas_cumulative(self)
        return np.sqrt(kept), np.sqrt(1 - kept)


@config.node
class RectifiedFlow:
    r"""The straight line from image to noise, :math:`x_\sigma = (1 - \sigma) x_0 + \sigma\epsilon`;
    the model predicts its direction :math:`\epsilon - x_0`.

    Paper: Liu et al. 2022, https://arxiv.org/abs/2209.03003; Lipman et al. 2022,
    https://arxiv.org/abs/2210.02747.
    """

    kind: Literal["flow"] = "flow"
    time_scale: float = 1000.0
    """A model's time is ``time_scale`` times sigma."""
    shift: float = 1.0
    """Sigmas become ``shift s / (1 + (shift - 1) s)``: above 1 there are more of strong noise, as
    large images want (Esser et al. 2024, https://arxiv.org/abs/2403.03206)."""
    levels_count: int = 1000
    """The least sigma at which a sampler asks the model is one over this, shifted (diffusers'
    ``num_train_timesteps``); training draws all sigmas."""

    def __post_init__(self):
        config.require(self.time_scale > 0, "time_scale", self.time_scale, "more than 0")
        config.require(self.shift > 0, "shift", self.shift, "more than 0")
        config.require(self.levels_count >= 2, "levels_count", self.levels_count, "at least 2")

    @property
    def prediction(self) -> Prediction:
        return "flow"


Process = DiscreteNoise | RectifiedFlow


@functools.lru_cache(maxsize=8)
def alphas_cumulative(process: DiscreteNoise) -> Float[np.ndarray, "t"]:
    r""":math:`\alpha_t^2` of every level: a cumulative product in float64 of float32 factors,
    rounded as diffusers rounds it."""
    count, ends = process.levels_count, (process.beta_start, process.beta_end)
    if process.schedule == "linear":
        betas = np.linspace(*ends, count)
    elif process.schedule == "scaled_linear":
        roots = np.linspace(ends[0] ** 0.5, ends[1] ** 0.5, count).astype(np.float32)
        betas = np.square(roots)
    else:
        at = np.arange(count + 1) / count
        kept = np.cos((at + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - kept[1:] / kept[:-1], 0.999)
    factors = np.float32(1) - betas.astype(np.float32)
    product = np.cumprod(factors.astype(np.float64)).astype(np.float32).astype(np.float64)
    if process.zero_terminal_snr:
        roots = np.sqrt(product)
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        product = np.square(roots)
    return product


def mixed(
    image: Float[Array, "b i j o"],
    noise: Float[Array, "b i j o"],
    alpha: Float[Array, "b"],
    sigma: Float[Array, "b"],
) -> Float[Array, "b i j o"]:
    r""":math:`\alpha x_0 + \sigma \epsilon`, row by row."""
    alpha, sigma = (level[:, None, None, None] for level in (alpha, sigma))
    return alpha * image + sigma * noise


def target(
    prediction: Prediction,
    image: Float[Array, "b i j o"],
    noise: Float[Array, "b i j o"],
    alpha: Float[Array, "b"],
    sigma: Float[Array, "b"],
) -> Float[Array, "b i j o"]:
    """Target of the model's prediction for the mixture."""
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return image
    if prediction == "flow":
        return noise - image
    return mixed(noise, image, alpha, -sigma)


def image_and_noise(
    prediction: Prediction, x: jax.Array, output: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The image and the noise that a model's output says ``x`` is mixed of; ``alpha`` and ``sigma``
    are those of ``x``, scalars or of a shape that broadcasts."""
    if prediction == "epsilon":
        return (x - sigma * output) / alpha, output
    if prediction == "x0":
        return output, (x - alpha * output) / sigma
    if prediction == "flow":
        return x - sigma * output, x + alpha * output
    return alpha * x - sigma * output, alpha * output + sigma * x
