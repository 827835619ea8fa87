"""Trained encoders of images, alone or beside one of texts, with their image processor: from a
Hugging Face directory or a checkpoint of ours."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import Checkpoints, read_arrays
from ziggurat.core import atomic, config, hub
from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.mesh import Layout
from ziggurat.models import image_processor
from ziggurat.models.conversion.weight_names import export_weights
from ziggurat.models.encoder_model import EncoderModel
from ziggurat.models.families.family import FAMILIES, family_of
from ziggurat.models.image_processor import ImageProcessor, ImageProcessorConfig
from ziggurat.models.loading import pretrained
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
    step = pretrained.step_directory(path)
    if step is not None:
        return (step / PROCESSOR_FILE).is_file()
    return (path / "config.json").is_file() and "image" in pretrained.hf_family(path)[0].inputs


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
    step = pretrained.step_directory(path) if path.is_dir() else None
    if step is not None:
        return _load_step(step, hub.name_of(path), precision, layout)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"encoder {path}", found="neither checkpoints nor config.json", expected="one of them"
        )
    family, values = pretrained.hf_family(path)
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
    with Checkpoints(directory) as checkpoints:
        if checkpoints.steps():
            raise CheckpointError(
                f"output {directory}", found="a checkpoint", expected="a new or empty directory"
            )
        files = pretrained.files_of(vision.model.config, vision.tokenizer)
        plain = config.to_plain(vision.processor.config)
        files[PROCESSOR_FILE] = json.dumps(plain, indent=2).encode()
        checkpoints.save(0, {"params": vision.params}, records or {}, files)
    newest = checkpoints.latest()
    assert newest is not None
    return newest.path


def export_hf(
    vision: PretrainedVision, directory: Path, *, max_shard_bytes: int = 5 * 10**9
) -> Path:
    """Write what transformers reads.

    Raises:
        CheckpointError: the directory is there already.
    """
    if directory.exists():
        raise CheckpointError(f"output {directory}", found="it exists", expected="a new directory")
    model, family = vision.model, family_of(vision.model.config)
    dtype = float_type(vision.params)
    values = family.to_hf(model.config) | {"dtype": dtype, "torch_dtype": dtype}
    with atomic.new_directory(directory) as target:
        if vision.tokenizer is not None:
            vision.tokenizer.save(target)
        tensors = export_weights(
            family.hf_names(model.config), vision.params, layers=model.n_layers
        )
        write_sharded(target, tensors, max_shard_bytes, metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        steps = image_processor.to_hf(vision.processor.config)
        (target / image_processor.FILE).write_text(json.dumps(steps, indent=2) + "\n")
    return directory


def _load_step(
    step: Path, name: str, precision: Precision | None, layout: Layout | None
) -> PretrainedVision:
    values, file = json.loads((step / pretrained.MODEL_FILE).read_text()), step / PROCESSOR_FILE
    settings = pretrained.model_config(values, str(step / pretrained.MODEL_FILE))
    if not file.is_file():
        raise ModelError(
            f"encoder {step}", found=f"a {settings.kind} model", expected="an encoder of images"
        )
    model = _model(settings, precision)
    processor = config.from_plain(ImageProcessorConfig, json.loads(file.read_text()), str(file))
    shardings = named_leaves(model.shardings(layout)) if layout is not None else {}
    params = place_arrays(step, read_arrays(step, "params"), model.abstract, shardings, precision)
    has_texts = "text" in FAMILIES[settings.kind].inputs
    tokenizer = HuggingFaceTokenizer.load(step / pretrained.TOKENIZER) if has_texts else None
    return PretrainedVision(model, params, ImageProcessor(processor), tokenizer, name, str(step))
