"""Diffusion over labelled images: what is compiled of such a run, and what it trains on."""

from typing import Any

import jax
import jax.numpy as jnp

from ziggurat import data as data_
from ziggurat.core.errors import ConfigError
from ziggurat.data import ImageDataset
from ziggurat.data.image_sources import pillow
from ziggurat.mesh import Layout
from ziggurat.models import DiffusionModel
from ziggurat.models.diffusion import Process
from ziggurat.models.image_pipeline import ImagePipeline, PipelineComponents
from ziggurat.models.language_model import PARAMS
from ziggurat.models.loading import pretrained_pipeline
from ziggurat.train.config import DitConfig, PretrainedModel, RunConfig
from ziggurat.train.objectives import text
from ziggurat.train.objectives.diffusion import Ddpm, FlowMatching, diffusion
from ziggurat.train.parts import ObjectiveKind, Parts, TrainingData, TrainingProgram


class LabelledImages(ObjectiveKind):
    """Objective kind: diffusion over labelled images."""

    images = True

    def program(self, run: RunConfig, layout: Layout) -> TrainingProgram:
        if not isinstance(run.model, DitConfig):
            raise ConfigError(
                "model", found="a path", expected="dimensions", fix="give [model] with its sizes"
            )
        return _program(run, layout, _build(run.model, run, layout))

    def parts(self, run: RunConfig, layout: Layout, data: TrainingData | None = None) -> Parts:
        if run.report.sample_images:
            pillow()  # lest a run end without its picture
        start, settings, process = None, run.model, _objective(run)
        if isinstance(run.model, PretrainedModel):
            start = pretrained_pipeline.load(run.model.path)
            settings = start.model.config
            _check_start(process, start)
        model = _build(settings, run, layout)
        images, held_out = text.first_alone("images", lambda: _data(run, model))
        _check_images(images, model)
        around = PipelineComponents.of(process, images.store.classes)
        return Parts(
            program=_program(run, layout, model),
            data=images,
            files=pretrained_pipeline.files_of(settings, around),
            start=None if start is None else start.weights[PARAMS],
            eval_data=held_out,
        )


class Flow(LabelledImages):
    """Objective kind ``flow``: flow matching."""

    node = FlowMatching


class Denoising(LabelledImages):
    """Objective kind ``ddpm``: denoising diffusion."""

    node = Ddpm


def batch_struct(
    layout: Layout, batch: int, shape: tuple[int, int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch of images."""
    rows = layout.sharding(("batch",))
    types = {"labels": jnp.int32, "weight": jnp.float32, "step": jnp.int32, "index": jnp.int32}
    structs = {
        name: jax.ShapeDtypeStruct((batch,), dtype, sharding=rows) for name, dtype in types.items()
    }
    images = layout.sharding(("batch", None, None, None))
    pixels = jax.ShapeDtypeStruct((batch, *shape), jnp.float32, sharding=images)
    return {"images": pixels} | structs


def _objective(run: RunConfig) -> FlowMatching | Ddpm:
    assert isinstance(run.objective, (FlowMatching, Ddpm)), "kinds and nodes have the same names"
    return run.objective


def _build(settings: Any, run: RunConfig, layout: Layout) -> DiffusionModel:
    train = run.train
    precision = text.precision(train, layout)
    return DiffusionModel.build(settings, precision, train.remat, train.attention)


def _program(run: RunConfig, layout: Layout, model: DiffusionModel) -> TrainingProgram:
    return TrainingProgram(
        model=model,
        sums=diffusion(model, _objective(run), run.seed),
        batch=batch_struct(layout, run.data.batch_size, model.image_shape),
    )


def _data(run: RunConfig, model: DiffusionModel) -> tuple[ImageDataset, ImageDataset | None]:
    data: Any = run.data
    tokens = model.config.tokens
    training = data_.build_images(data, run.seed, tokens=tokens)
    if not data.eval_fraction:
        return training, None
    return training, ImageDataset(data, training.store, run.seed, "eval", tokens)


def _check_images(data: ImageDataset, model: DiffusionModel) -> None:
    """Refuse images that are not of the model's shape, or of more classes than it has.

    Raises:
        ConfigError: which it is.
    """
    rows, columns, channels = data.store.shape
    size = model.config.image_size
    if (rows, columns) != (size, size) or channels != model.config.channels:
        raise ConfigError(
            "model.image_size and model.channels",
            found=f"{size} and {model.config.channels}",
            expected=f"{rows} and {channels}, as the images have"
            if rows == columns
            else f"square images, not {rows} x {columns}",
        )
    if len(data.store.classes) > model.config.classes:
        raise ConfigError(
            "model.classes",
            found=model.config.classes,
            expected=f"at least {len(data.store.classes)}, the classes of the images",
        )


def _check_start(process: Process, start: ImagePipeline) -> None:
    """Refuse weights that were trained for another process, or for latents.

    Raises:
        ConfigError: which it is.
    """
    if start.autoencoder is not None:
        raise ConfigError(
            "model.path", found="a model of latents", expected="one of images, which are trained"
        )
    ours = PipelineComponents.of(process).process
    if start.around.process != ours:
        raise ConfigError(
            "objective",
            found=f"{ours}",
            expected=f"what the weights were trained for: {start.around.process}",
        )
