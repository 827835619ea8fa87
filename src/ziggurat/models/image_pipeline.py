"""A trained diffusion model with all that turns a class and a seed into an image.

:mod:`ziggurat.models.loading.pretrained_pipeline` reads and writes it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.models.diffusion import (
    DiscreteNoise,
    Process,
    RectifiedFlow,
    Sampling,
    guided,
    plan_of,
    row_noise,
    sample,
)
from ziggurat.models.diffusion_model import AutoencoderModel, DiffusionModel
from ziggurat.models.families.autoencoder_kl import AutoencoderKLConfig
from ziggurat.models.language_model import PARAMS, Params

AUTOENCODER = "autoencoder"
"""Item of a step that holds the autoencoder's parameters, if there is one."""
Draw = Callable[[Params, Int[Array, "b"], Int[Array, "b"]], Float[Array, "b i j o"]]
"""``(weights, labels, seeds) -> images`` of 0 to 1."""


@config.node
class PipelineComponents:
    """Components of a diffusion pipeline besides the model: process, class names and
    autoencoder."""

    flow: RectifiedFlow | None = None
    """The process the model was trained for: a rectified flow,"""
    discrete: DiscreteNoise | None = None
    """or discrete noise."""
    labels: tuple[str, ...] = ()
    """Names of the classes, if they have any."""
    autoencoder: AutoencoderKLConfig | None = None
    """Whose latents the model works on; none: on images."""

    def __post_init__(self):
        one = (self.flow is None) != (self.discrete is None)
        config.require(one, "flow", "both or none of flow and discrete", "one of them")

    @property
    def process(self) -> Process:
        found = self.flow or self.discrete
        assert found is not None
        return found

    @classmethod
    def of(
        cls,
        process: Process,
        labels: tuple[str, ...] = (),
        autoencoder: AutoencoderKLConfig | None = None,
    ) -> "PipelineComponents":
        """For a process, also if it is the base of an objective's node."""
        kind = RectifiedFlow if isinstance(process, RectifiedFlow) else DiscreteNoise
        names = [field.name for field in dataclasses.fields(kind)]
        base: Any = kind(**{name: getattr(process, name) for name in names})
        flow = base if kind is RectifiedFlow else None
        discrete = base if kind is DiscreteNoise else None
        return cls(flow=flow, discrete=discrete, labels=labels, autoencoder=autoencoder)


@dataclasses.dataclass(frozen=True)
class ImagePipeline:
    """A diffusion model with its weights, its process and, for latents, their autoencoder."""

    model: DiffusionModel
    weights: Params
    """``params`` and, where there is one, ``autoencoder``."""
    around: PipelineComponents
    autoencoder: AutoencoderModel | None
    name: str
    """Name of the model on a server."""
    source: str
    """Where it was read from, for people."""
    sampling: Sampling | None = None
    """Sampler that was stored with the model, if any."""

    @property
    def default_sampling(self) -> Sampling:
        """The stored sampler; else Euler for a flow, DPM-Solver++ for discrete noise."""
        if self.sampling is not None:
            return self.sampling
        return Sampling(method="euler" if self.around.flow is not None else "dpm++", steps=25)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of an image."""
        rows, columns, channels = self.model.image_shape
        if self.autoencoder is None:
            return rows, columns, channels
        by = self.autoencoder.config.shrink
        return rows * by, columns * by, self.autoencoder.config.out_channels

    def draw(self, sampling: Sampling, guidance: float = 1.0) -> Draw:
        """The pure function that makes images; jit it.

        A row depends on its own label and seed alone. A label that is no class (nor
        ``model.none``) gives NaN.

        Args:
            sampling: the sampler.
            guidance: scale of classifier-free guidance; 1: none.

        Raises:
            ConfigError: the sampler is not for this model's process.
        """
        plan, model, autoencoder = plan_of(self.around.process, sampling), self.model, None
        autoencoder, shape = self.autoencoder, self.model.image_shape

        def images(
            weights: Params, labels: Int[Array, "b"], seeds: Int[Array, "b"]
        ) -> Float[Array, "b i j o"]:
            def predict(x: jax.Array, time: jax.Array, classes: jax.Array) -> jax.Array:
                return model.predict(weights[PARAMS], x, time, classes)

            known = (labels >= 0) & (labels <= model.none)
            steered = guided(predict, jnp.where(known, labels, 0), model.none, guidance)
            drawn = sample(
                steered,
                plan,
                row_noise(seeds, "sample start", shape),
                lambda step: row_noise(seeds, "sample noise", shape, step),
            )
            if autoencoder is not None:
                drawn = autoencoder.decode(weights[AUTOENCODER], drawn)
            drawn = jnp.clip(drawn / 2 + 0.5, 0.0, 1.0)
            return jnp.where(known[:, None, None, None], drawn, jnp.nan)

        return images

    def label_of(self, text: str) -> int:
        """A class by its number or its name.

        Raises:
            ConfigError: there is no such class.
        """
        if text in self.around.labels:
            return self.around.labels.index(text)
        if text.isdigit() and int(text) < self.model.config.classes:
            return int(text)
        named = f", or one of {', '.join(self.around.labels[:12])}" if self.around.labels else ""
        last = self.model.config.classes - 1
        raise ConfigError("class", found=repr(text), expected=f"0 to {last}{named}")
