"""Directories of diffusers: a pipeline (``model_index.json`` over ``transformer/``, ``vae/`` and
``scheduler/``), or one model's ``config.json`` and safetensors; in both directions.

Only ``DiTPipeline`` is read as a whole; its classes select the code, as an architecture does for
language models.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.core import atomic
from ziggurat.core.errors import ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.mesh import Layout
from ziggurat.models.conversion import diffusers_scheduler
from ziggurat.models.conversion.weight_names import export_weights, import_weights
from ziggurat.models.diffusion import DiscreteNoise
from ziggurat.models.diffusion_model import AutoencoderModel, DiffusionModel
from ziggurat.models.families.autoencoder_kl import diffusers as autoencoder_files
from ziggurat.models.families.dit import diffusers as dit_files
from ziggurat.models.image_pipeline import AUTOENCODER, ImagePipeline, PipelineComponents
from ziggurat.models.language_model import PARAMS
from ziggurat.models.loading.hf_directory import require_new
from ziggurat.models.loading.placing import placement
from ziggurat.models.traced_model import Params
from ziggurat.nn.precision import Precision

STEM = "diffusion_pytorch_model"
"""Name of weight files before the extension."""
INDEX = "model_index.json"
PIPELINE = "DiTPipeline"
MADE_FOR = "0.42.0"
"""The diffusers whose files these are like."""


def is_diffusers(path: Path) -> bool:
    """Whether a directory is one of diffusers; what it holds is looked at no further."""
    if (path / INDEX).is_file():
        return True
    return (path / "config.json").is_file() and "_class_name" in _json(path / "config.json")


def load(
    path: Path, *, precision: Precision | None = None, layout: Layout | None = None
) -> ImagePipeline:
    """Read a pipeline, or a DiT alone (then its process is DDPM's as DiT was published).

    Raises:
        ModelError: a class or a switch is unknown.
        CheckpointError: weights are damaged, missing, or of another shape.
    """
    labels: tuple[str, ...] = ()
    if not (path / INDEX).is_file():
        model, params = load_transformer(path, precision, layout)
        around = PipelineComponents(discrete=DiscreteNoise())
        return ImagePipeline(model, {PARAMS: params}, around, None, path.name, str(path))
    index = _json(path / INDEX)
    if index.get("_class_name") != PIPELINE:
        raise ModelError(
            f"{path / INDEX}: _class_name", found=index.get("_class_name"), expected=PIPELINE
        )
    model, params = load_transformer(path / "transformer", precision, layout)
    weights: Params = {PARAMS: params}
    autoencoder = None
    if (index.get("vae") or [None])[0] is not None:
        autoencoder, weights[AUTOENCODER] = load_autoencoder(path / "vae", precision)
        _check_latents(path, model, autoencoder)
    process, sampling = diffusers_scheduler.from_diffusers(
        _json(path / "scheduler" / diffusers_scheduler.FILE)
    )
    if names := index.get("id2label"):
        labels = tuple(str(names.get(str(n), n)) for n in range(model.config.classes))
    around = PipelineComponents.of(
        process, labels, None if autoencoder is None else autoencoder.config
    )
    return ImagePipeline(model, weights, around, autoencoder, path.name, str(path), sampling)


def load_transformer(
    path: Path, precision: Precision | None = None, layout: Layout | None = None
) -> tuple[DiffusionModel, Params]:
    """A DiT from its own directory.

    Raises:
        ModelError, CheckpointError: as :func:`load`.
    """
    values = _config(path, (dit_files.CLASS, dit_files.OLD_CLASS))
    settings = dit_files.from_diffusers(values)
    tensors = SafetensorsDirectory(path, STEM)
    settings = dit_files.told_by_weights(settings, tensors)
    model = DiffusionModel.build(settings, precision)
    params = import_weights(
        dit_files.names(settings),
        tensors,
        model.abstract,
        layers=settings.n_layers,
        ignored=lambda name: dit_files.ignored(settings, name),
        place=placement(model.shardings(layout) if layout is not None else {}),
        as_stored=model.precision.as_stored,
    )
    dit_files.check_positions(settings, tensors)
    return model, params


def load_autoencoder(
    path: Path, precision: Precision | None = None
) -> tuple[AutoencoderModel, Params]:
    """An autoencoder from its own directory.

    Raises:
        ModelError, CheckpointError: as :func:`load`.
    """
    values = _config(path, (autoencoder_files.CLASS,))
    model = AutoencoderModel.build(autoencoder_files.from_diffusers(values), precision)
    tensors = SafetensorsDirectory(path, STEM)
    old = any(name.endswith(".proj_attn.weight") for name in tensors)
    names = autoencoder_files.names(named_leaves(model.abstract), old_attention=old)
    params = import_weights(
        names,
        tensors,
        model.abstract,
        layers=0,
        place=placement({}),
        as_stored=model.precision.as_stored,
    )
    return model, params


def export(pipeline: ImagePipeline, directory: Path, *, max_shard_bytes: int = 5 * 10**9) -> Path:
    """Write a pipeline as diffusers reads it. One without an autoencoder has ``vae: [null, null]``,
    which ``DiTPipeline`` loads but cannot decode with.

    Raises:
        CheckpointError: the directory is there already.
        ModelError: the config has no counterpart there.
    """
    require_new(directory)
    settings: Any = pipeline.model.config
    values = dit_files.to_diffusers(settings)
    process = pipeline.around.process
    scheduler = diffusers_scheduler.to_diffusers(process, pipeline.default_sampling)
    autoencoder = pipeline.autoencoder
    library = None if autoencoder is None else "diffusers"
    index: dict[str, Any] = {
        "_class_name": PIPELINE,
        "_diffusers_version": MADE_FOR,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "transformer": ["diffusers", dit_files.CLASS],
        "vae": [library, library and autoencoder_files.CLASS],
    }
    if labels := pipeline.around.labels:
        index["id2label"] = {str(number): name for number, name in enumerate(labels)}
    with atomic.new_directory(directory) as target:
        weights = dit_files.export(settings, pipeline.weights[PARAMS])
        _write(target / "transformer", values, weights, max_shard_bytes)
        if autoencoder is not None:
            tensors = autoencoder_tensors(pipeline.weights[AUTOENCODER])
            values = autoencoder_files.to_diffusers(autoencoder.config)
            _write(target / "vae", values, tensors, max_shard_bytes)
        (target / "scheduler").mkdir()
        _write_json(target / "scheduler" / diffusers_scheduler.FILE, scheduler)
        _write_json(target / INDEX, index)
    return directory


def autoencoder_tensors(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """An autoencoder's tensors as its files have them."""
    return export_weights(autoencoder_files.names(named_leaves(params)), params, layers=0)


def _write(
    directory: Path, values: dict[str, Any], tensors: Iterator[tuple[str, np.ndarray]], shard: int
) -> None:
    write_sharded(directory, tensors, shard, metadata={"format": "pt"}, stem=STEM)
    _write_json(directory / "config.json", values | {"_diffusers_version": MADE_FOR})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _config(path: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    values = _json(path / "config.json")
    if values.get("_class_name") not in classes:
        raise ModelError(
            f"{path / 'config.json'}: _class_name",
            found=values.get("_class_name", "nothing"),
            expected=" or ".join(classes),
        )
    return values


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(str(path), found=error, expected="a JSON object") from None
    if not isinstance(values, dict):
        raise ModelError(str(path), found=type(values).__name__, expected="a JSON object")
    return values


def _check_latents(path: Path, model: DiffusionModel, autoencoder: AutoencoderModel) -> None:
    if model.config.channels != autoencoder.config.latent_channels:
        raise ModelError(
            f"pipeline {path}",
            found=f"a transformer of {model.config.channels} channels",
            expected=f"the autoencoder's {autoencoder.config.latent_channels}",
        )
