"""Trained encoders of images, alone or beside one of texts, with their image processor: from a
Hugging Face directory or a checkpoint of ours."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import read_arrays
from ziggurat.core import config, hub
from ziggurat.core.errors import ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import SafetensorsDirectory
from ziggurat.mesh import Layout
from ziggurat.models import image_processor
from ziggurat.models.conversion.weight_names import export_weights
from ziggurat.models.encoder_model import EncoderModel
from ziggurat.models.families.family import FAMILIES, family_of
from ziggurat.models.image_processor import ImageProcessor, ImageProcessorConfig
from ziggurat.models.language_model import PARAMS
from ziggurat.models.loading import hf_directory, step_files
from ziggurat.models.loading.hf_directory import require_new, write_directory
from ziggurat.models.loading.placing import float_type, place_arrays
from ziggurat.models.loading.pretrained_encoder import hf_weights
from ziggurat.models.traced_model import Params
from ziggurat.models.two_tower_model import TwoTowerModel
from ziggurat.nn.precision import Precision

PROCESSOR_FILE = "processor.json"
"""How pictures become pixels, inside a checkpoint step."""


@dataclasses.dataclass(frozen=True)
class PretrainedVision:
    """An encoder of images, or one of texts and one of images, with weights and processors."""

    model: EncoderModel | TwoTowerModel
    params: Params
    processor: ImageProcessor
    tokenizer: HuggingFaceTokenizer | None
    """Tokenizer of the texts, where there is a tower for them."""
    name: str
    """Name of the model on a server."""
    source: str
    """Where it was read from, for people."""


def is_vision(path: Path) -> bool:
    """Whether a directory holds an encoder of images; what it holds is looked at no further."""
    step = step_files.step_directory(path)
    if step is not None:
        return (step / PROCESSOR_FILE).is_file()
    return (path / "config.json").is_file() and "image" in hf_directory.hf_family(path)[0].inputs


def load(
    path: Path | str, *, precision: Precision | None = None, layout: Layout | None = None
) -> PretrainedVision:
    """Read a trained encoder of images, such as ViT, DINOv2, CLIP or SigLIP.

    Args:
        path: a Hugging Face directory (``config.json``, ``preprocessor_config.json`` and
            safetensors), or a checkpoint that ``ziggurat import hf`` made of one.
        precision: parameter and compute types; default float32.
        layout: where parameters go; default the first device.

    Raises:
        ModelError: nothing of the kind is there, or the architecture, the processor or a switch is
            unknown.
        CheckpointError: weights are damaged, missing, or of another shape.
    """
    path = hub.local(path)
    step = step_files.step_directory(path) if path.is_dir() else None
    if step is not None:
        return _load_step(step, hub.name_of(path), precision, layout)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"encoder {path}", found="neither checkpoints nor config.json", expected="one of them"
        )
    family, values = hf_directory.hf_family(path)
    if "image" not in family.inputs:
        raise ModelError(
            f"encoder {path}", found=f"a {family.name} model", expected="an encoder of images"
        )
    processor = image_processor.read_processor(path)
    tensors = SafetensorsDirectory(path)
    model = _model(family.as_found(family.from_hf(values), tensors), precision)
    params = hf_weights(family, model, tensors, layout)
    tokenizer = HuggingFaceTokenizer.load(path) if "text" in family.inputs else None
    return PretrainedVision(model, params, processor, tokenizer, hub.name_of(path), str(path))


def _model(settings: Any, precision: Precision | None) -> EncoderModel | TwoTowerModel:
    both = "text" in FAMILIES[settings.kind].inputs
    return (TwoTowerModel if both else EncoderModel).build(settings, precision)


def save(
    vision: PretrainedVision, directory: Path, records: Mapping[str, Any] | None = None
) -> Path:
    """Write an encoder as a checkpoint of its own (``step_00000000``), which :func:`load` reads.

    Raises:
        CheckpointError: there is a checkpoint already.
    """
    files = step_files.files_of(vision.model.config, vision.tokenizer)
    plain = config.to_plain(vision.processor.config)
    files[PROCESSOR_FILE] = json.dumps(plain, indent=2).encode()
    return step_files.save_new(directory, {PARAMS: vision.params}, files, records)


def export_hf(
    vision: PretrainedVision, directory: Path, *, max_shard_bytes: int = 5 * 10**9
) -> Path:
    """Write what transformers reads.

    Raises:
        CheckpointError: the directory is there already.
    """
    require_new(directory)
    model, family = vision.model, family_of(vision.model.config)
    names = family.hf_names(model.config)
    return write_directory(
        directory,
        family.to_hf(model.config),
        export_weights(names, vision.params, layers=model.n_layers),
        dtype=float_type(vision.params),
        tokenizer=vision.tokenizer,
        files={image_processor.FILE: image_processor.to_hf(vision.processor.config)},
        max_shard_bytes=max_shard_bytes,
    )


def _load_step(
    step: Path, name: str, precision: Precision | None, layout: Layout | None
) -> PretrainedVision:
    values, file = json.loads((step / step_files.MODEL_FILE).read_text()), step / PROCESSOR_FILE
    settings = step_files.model_config(values, str(step / step_files.MODEL_FILE))
    if not file.is_file():
        raise ModelError(
            f"encoder {step}", found=f"a {settings.kind} model", expected="an encoder of images"
        )
    model = _model(settings, precision)
    processor = config.from_plain(ImageProcessorConfig, json.loads(file.read_text()), str(file))
    shardings = named_leaves(model.shardings(layout)) if layout is not None else {}
    params = place_arrays(step, read_arrays(step, PARAMS), model.abstract, shardings, precision)
    has_texts = "text" in FAMILIES[settings.kind].inputs
    tokenizer = HuggingFaceTokenizer.load(step / step_files.TOKENIZER) if has_texts else None
    return PretrainedVision(model, params, ImageProcessor(processor), tokenizer, name, str(step))
