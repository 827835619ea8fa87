"""Trained diffusion models with their process and autoencoder: from a run, a checkpoint step, or a
directory of diffusers (``model_index.json``, or one model's ``config.json``); and to a checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import read_arrays
from ziggurat.core import config, hub
from ziggurat.core.errors import ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.mesh import Layout
from ziggurat.models.diffusion_model import AutoencoderModel, DiffusionModel
from ziggurat.models.families.dit import DitConfig
from ziggurat.models.image_pipeline import AUTOENCODER, ImagePipeline, PipelineComponents
from ziggurat.models.language_model import PARAMS
from ziggurat.models.loading import diffusers_layout
from ziggurat.models.loading.placing import place_arrays
from ziggurat.models.loading.step_files import (
    DIFFUSION_FILE,
    MODEL_FILE,
    save_new,
    step_directory,
    trained_item,
)
from ziggurat.nn.layer_scan import Remat
from ziggurat.nn.precision import Precision

KINDS = {"dit": DitConfig}
"""Families of diffusion models by ``kind``."""


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
    files = files_of(pipeline.model.config, pipeline.around)
    return save_new(directory, pipeline.weights, files, records)


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
