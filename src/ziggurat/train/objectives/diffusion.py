"""The diffusion objectives: predict what noise did to an image.

A batch is that of ``ziggurat.data.ImageDataset``. Every draw (noise, its strength, whether the
class is hidden) is keyed by the run's seed, the step and the row, so it is the same on any number
of devices or hosts and after any number of restarts.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.core import config, prng
from ziggurat.core.errors import ConfigError
from ziggurat.mesh import constrain
from ziggurat.models import DiffusionModel, Params
from ziggurat.models.diffusion import DiscreteNoise, RectifiedFlow, mixed, target
from ziggurat.train.step import Arrays, Objective, Sums


@config.node
class FlowMatching(RectifiedFlow):
    """Objective: predict the direction from images to noise (flow matching on straight lines).

    Paper: Lipman et al. 2022, https://arxiv.org/abs/2210.02747; times: Esser et al. 2024,
    https://arxiv.org/abs/2403.03206.
    """

    times: Literal["logit_normal", "uniform"] = "logit_normal"
    """How sigmas are drawn: most in the middle, or evenly."""
    logit_mean: float = 0.0
    """Mean of the logits of the noise levels; above 0, more noise."""
    logit_std: float = 1.0
    """Standard deviation of the logits of the noise levels."""
    class_dropout: float = 0.1
    """Share of images whose class is hidden, so that guidance has something to steer from."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.logit_std > 0, "logit_std", self.logit_std, "more than 0")
        _check_share("class_dropout", self.class_dropout)


@config.node
class Ddpm(DiscreteNoise):
    """Objective: predict the noise, the image or a mixture of both, at a discrete noise level
    (DDPM)."""

    min_snr: float | None = None
    """Bound on the weight of weak noise, e.g. 5 (min-SNR); default all levels weigh the same."""
    class_dropout: float = 0.1
    """Share of images whose class is hidden, so that guidance has something to steer from."""

    def __post_init__(self):
        super().__post_init__()
        config.require(
            self.min_snr is None or self.min_snr > 0, "min_snr", self.min_snr, "more than 0"
        )
        _check_share("class_dropout", self.class_dropout)


def _check_share(key: str, share: float) -> None:
    config.require(0 <= share < 1, key, share, "0 or more and below 1")


def diffusion(model: DiffusionModel, node: FlowMatching | Ddpm, seed: int) -> Objective:
    r"""The objective :math:`w_t \lVert f(x_t, t, y) - u_t \rVert^2`, a mean over pixels and a sum
    over images.

    Its sums are ``loss``; the weight is the number of images.

    Raises:
        ConfigError: the model predicts a variance, which nothing here would train.
    """
    if model.transformer.out_channels != model.transformer.in_channels:
        raise ConfigError(
            "model.learned_variance",
            found="true",
            expected="false: this objective does not train a variance",
        )
    draw = flow_levels if isinstance(node, FlowMatching) else discrete_levels

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        images, step, index = batch["images"], batch["step"], batch["index"]
        noise = normal_rows(seed, step, index, images.shape[1:])
        time, alpha, sigma, weight = draw(node, seed, step, index)  # pyright: ignore
        labels = hidden_labels(batch["labels"], model.none, node.class_dropout, seed, step, index)
        x = constrain(mixed(images, noise, alpha, sigma), ("batch", None, None, None))
        said = model.predict(params, x, time, labels)
        wanted = target(node.prediction, images, noise, alpha, sigma)
        with jax.named_scope("loss"):
            errors = jnp.mean(jnp.square(said - wanted), axis=(1, 2, 3)) * weight
            loss = jnp.sum(errors * batch["weight"])
        return Sums(loss, jnp.sum(batch["weight"]), {"loss": loss})

    return objective


def flow_levels(
    node: FlowMatching, seed: int, step: Int[Array, "b"], index: Int[Array, "b"]
) -> tuple[Float[Array, "b"], Float[Array, "b"], Float[Array, "b"], Float[Array, "b"]]:
    """Times, shares of image and noise, and weights (one), of a rectified flow."""
    if node.times == "uniform":
        sigma = uniform_rows(seed, "diffusion time", step, index)
    else:
        drawn = normal_rows(seed, step, index, (), "diffusion time")
        sigma = jax.nn.sigmoid(node.logit_mean + node.logit_std * drawn)
    sigma = node.shift * sigma / (1 + (node.shift - 1) * sigma)
    return node.time_scale * sigma, 1 - sigma, sigma, jnp.ones_like(sigma)


def discrete_levels(
    node: Ddpm, seed: int, step: Int[Array, "b"], index: Int[Array, "b"]
) -> tuple[Float[Array, "b"], Float[Array, "b"], Float[Array, "b"], Float[Array, "b"]]:
    """Levels of DDPM, with the weights of min-SNR if configured."""
    alphas, sigmas = (jnp.asarray(x, jnp.float32) for x in node.levels())
    uniform = uniform_rows(seed, "diffusion time", step, index)
    level = jnp.minimum((uniform * node.levels_count).astype(jnp.int32), node.levels_count - 1)
    weights = jnp.asarray(min_snr_weights(node), jnp.float32)
    return level.astype(jnp.float32), alphas[level], sigmas[level], weights[level]


def min_snr_weights(node: Ddpm) -> Float[np.ndarray, "t"]:
    r"""Weights by level: one; or, with ``min_snr`` :math:`\gamma` and
    :math:`s = \alpha^2 / \sigma^2`, :math:`\min(s, \gamma)` of the error in the image, that is
    :math:`\min(s, \gamma) / s` for the noise and :math:`\min(s, \gamma) / (s + 1)` for ``v``.

    Paper: Hang et al. 2023, https://arxiv.org/abs/2303.09556.
    """
    alpha, sigma = node.levels()
    if node.min_snr is None:
        return np.ones_like(alpha)
    snr = np.square(alpha) / np.square(sigma)
    bounded = np.minimum(snr, node.min_snr)
    divisor = {"x0": np.ones_like(snr), "epsilon": snr, "v": snr + 1}[node.prediction]
    return bounded / divisor


def hidden_labels(
    labels: Int[Array, "b"],
    none: int,
    rate: float,
    seed: int,
    step: Int[Array, "b"],
    index: Int[Array, "b"],
) -> Int[Array, "b"]:
    """Replace some labels by ``none``, so that the model also learns without labels
    (classifier-free guidance)."""
    if rate == 0:
        return labels
    return jnp.where(uniform_rows(seed, "diffusion class", step, index) < rate, none, labels)


def normal_rows(
    seed: int,
    step: Int[Array, "b"],
    index: Int[Array, "b"],
    shape: tuple[int, ...],
    purpose: str = "diffusion noise",
) -> Float[Array, "b ..."]:
    """Draw standard normal values, each row keyed by its step and index."""
    return jax.vmap(lambda s, i: jax.random.normal(prng.stream(seed, purpose, s, i), shape))(
        step, index
    )


def uniform_rows(
    seed: int, purpose: str, step: Int[Array, "b"], index: Int[Array, "b"]
) -> Float[Array, "b"]:
    """Draw values between 0 and 1, each row keyed by its step and index."""
    return jax.vmap(lambda s, i: jax.random.uniform(prng.stream(seed, purpose, s, i)))(step, index)
