"""A trained diffusion model with all that turns a class and a seed into an image.

It is read from a run, a checkpoint step, or a directory of diffusers (``model_index.json``, or one
model's ``config.json``).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.checkpoint import Checkpoints, read_arrays
from ziggurat.core import config, hub
from ziggurat.core.errors import CheckpointError, ConfigError, ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.mesh import Layout
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
from ziggurat.models.families.dit import DitConfig
from ziggurat.models.language_model import Params
from ziggurat.models.loading.placing import place_arrays
from ziggurat.models.loading.pretrained import (
    DIFFUSION_FILE,
    MODEL_FILE,
    PARAMS,
    step_directory,
    trained_item,
)
from ziggurat.nn.decoder import Remat
from ziggurat.nn.precision import Precision

AUTOENCODER = "autoencoder"
"""Item of a step that holds the autoencoder's parameters, if there is one."""
KINDS = {"dit": DitConfig}
"""Families of diffusion models by ``kind``."""
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
    """The sampler that was stored with it, if any."""

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


def model_config(values: Mapping[str, Any], source: str) -> Any:
    """A diffusion family's config from its plain form (``model.json``).

    Raises:
        ModelError: it is no diffusion model's.
    """
    kind = str(values.get("kind"))
    if kind not in KINDS:
        raise ModelError(
            f"image model {source}",
            found=f"a {kind} model",
            expected=f"a diffusion model ({', '.join(KINDS)})",
        )
    return config.from_plain(KINDS[kind], values, source)


def load(
    path: Path | str,
    *,
    precision: Precision | None = None,
    layout: Layout | None = None,
    remat: Remat = "none",
    averaged: bool = True,
) -> ImagePipeline:
    """Read a trained diffusion model.

    Args:
        path: a run, a checkpoint step, or a directory of diffusers.
        precision: parameter and compute types; default float32.
        layout: where parameters go; default the first device.
        remat: what blocks keep, should it be trained.
        averaged: take averaged parameters where the checkpoint has them.

    Raises:
        ModelError: nothing of the kind is there, or a class or a switch is unknown.
        CheckpointError: weights are damaged, missing, or of another shape.
    """
    from ziggurat.models.loading import diffusers_layout

    path = hub.local(path)
    step = step_directory(path) if path.is_dir() else None
    if step is not None:
        return _load_step(step, hub.name_of(path), precision, layout, remat, averaged)
    if diffusers_layout.is_diffusers(path):
        return diffusers_layout.load(path, precision=precision, layout=layout)
    raise ModelError(
        f"image model {path}",
        found="no such directory" if not path.is_dir() else "neither checkpoints nor diffusers'",
        expected="a run, a checkpoint step, or a directory with model_index.json",
        fix="check the path",
    )


def files_of(model: Any, around: PipelineComponents) -> dict[str, bytes | Path]:
    """Files of a checkpoint step besides arrays, with which :func:`load` can read it alone."""
    return {
        MODEL_FILE: json.dumps(config.to_plain(model), indent=2).encode(),
        DIFFUSION_FILE: json.dumps(config.to_plain(around), indent=2).encode(),
    }


def save(
    pipeline: ImagePipeline, directory: Path, records: Mapping[str, Any] | None = None
) -> Path:
    """Write a model as a checkpoint of its own (``step_00000000``), which :func:`load` reads.

    Raises:
        CheckpointError: there is a checkpoint already.
    """
    with Checkpoints(directory) as checkpoints:
        if checkpoints.steps():
            raise CheckpointError(
                f"output {directory}", found="a checkpoint", expected="a new or empty directory"
            )
        files = files_of(pipeline.model.config, pipeline.around)
        checkpoints.save(0, pipeline.weights, records or {}, files)
    newest = checkpoints.latest()
    assert newest is not None
    return newest.path


def _load_step(
    step: Path,
    name: str,
    precision: Precision | None,
    layout: Layout | None,
    remat: Remat,
    averaged: bool,
) -> ImagePipeline:
    settings = model_config(json.loads((step / MODEL_FILE).read_text()), str(step / MODEL_FILE))
    file = step / DIFFUSION_FILE
    if not file.is_file():
        raise ModelError(f"image model {step}", found="no diffusion.json", expected="a whole step")
    around = config.from_plain(PipelineComponents, json.loads(file.read_text()), str(file))
    model = DiffusionModel.build(settings, precision, remat)
    shardings = named_leaves(model.shardings(layout)) if layout is not None else {}
    arrays = read_arrays(step, trained_item(step) if averaged else PARAMS)
    weights = {PARAMS: place_arrays(step, arrays, model.abstract, shardings, precision)}
    autoencoder = None
    if around.autoencoder is not None:
        autoencoder = AutoencoderModel.build(around.autoencoder, precision)
        stored = read_arrays(step, AUTOENCODER)
        weights[AUTOENCODER] = place_arrays(step, stored, autoencoder.abstract, {}, precision)
    return ImagePipeline(model, weights, around, autoencoder, name, str(step))
