"""Qwen2.5-VL, Qwen3-VL and Qwen 3.5 with images in Hugging Face's ``config.json``."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ziggurat.core.errors import DataError, ModelError
from ziggurat.models import patch_processor
from ziggurat.models.conversion.block_names import joined_experts
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.rotary_settings import hf_rope_parameters
from ziggurat.models.conversion.text_part import MULTIMODAL_TYPES, Part
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.family import family_of
from ziggurat.models.families.qwen_moe import Qwen3MoeConfig
from ziggurat.models.families.qwen_vl.config import (
    Qwen3MoeVLConfig,
    Qwen3VLConfig,
    Qwen25VLConfig,
    Qwen35MoeVLConfig,
    Qwen35VLConfig,
    Qwen35VLFields,
    QwenVLConfig,
)
from ziggurat.models.families.qwen_vl.names import tower_names
from ziggurat.models.families.qwen_vl.vision import Qwen3VisionConfig, QwenVisionConfig
from ziggurat.models.image_places import token_count
from ziggurat.models.image_processor import read_file
from ziggurat.models.patch_processor import PatchProcessor, PatchProcessorConfig
from ziggurat.models.vision_language_model import PreparedImage, blank

CLASSES: dict[str, type[QwenVLConfig]] = {
    "qwen2_5_vl": Qwen25VLConfig,
    "qwen3_vl": Qwen3VLConfig,
    "qwen3_vl_moe": Qwen3MoeVLConfig,
    "qwen3_5": Qwen35VLConfig,
    "qwen3_5_moe": Qwen35MoeVLConfig,
}
"""Config nodes by type of model."""
IDS = {
    "image_token": "image_token_id",
    "video_token": "video_token_id",
    "begin_token": "vision_start_token_id",
    "end_token": "vision_end_token_id",
}
"""Ids of tokens, here and there."""
SIZES = {
    "d_model": "hidden_size",
    "n_layers": "depth",
    "n_heads": "num_heads",
    "d_ff": "intermediate_size",
    "outputs": "out_hidden_size",
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "frames": "temporal_patch_size",
    "channels": "in_channels",
    "init_std": "initializer_range",
}
"""Dimensions of a tower, here and there."""


def from_hf(values: Mapping[str, Any], language: Any) -> QwenVLConfig:
    """``config.json`` of a Qwen-VL model to config.

    Args:
        values: the file.
        language: config of the language model in it.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    # Keys at the top that nobody knows are refused where the language model's are read: files of
    # before transformers 5 have its settings there.
    kind = str(values.get("model_type", "qwen2_5_vl"))
    hf = HFConfig(values, kind)
    table = hf.given("vision_config")
    if not isinstance(table, Mapping):
        raise ModelError("config.json: vision_config", found=repr(table), expected="a table")
    found = {ours: hf.get(theirs) for ours, theirs in IDS.items()}
    found |= {"language": language, "image": _tower(table, kind)}
    return checked(CLASSES[kind], found, "config.json")


def _tower(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    hf = HFConfig(values, f"{kind}_vision")
    found = {ours: hf.get(theirs) for ours, theirs in SIZES.items()}
    rope = dict(hf.get("rope_parameters"))
    theta = rope.pop("rope_theta", hf.get("rope_theta"))
    if rope not in ({}, {"rope_type": "axial"}):
        raise ModelError(
            "config.json: vision_config.rope_parameters", found=rope, expected="type axial"
        )
    found |= {"rope_theta": theta, "activation": activation(hf)}
    # older names that publishers' files hold beside those that count
    hf.refuse_unless("in_chans", (found["channels"],), "in_channels is what counts")
    hf.refuse_unless("spatial_patch_size", (found["patch_size"],), "patch_size is what counts")
    hf.given("tokens_per_second")  # of videos
    if kind != "qwen2_5_vl":
        rows = hf.whole("num_position_embeddings", 2304)
        side = math.isqrt(rows)
        if side * side != rows:
            raise ModelError(
                "config.json: num_position_embeddings", found=rows, expected="a square number"
            )
        # Qwen 3.5 has none, and its published files an empty list
        found |= {"position_side": side, "tapped_layers": hf.get("deepstack_visual_indexes", ())}
    else:
        full, layers = hf.get("fullatt_block_indexes"), hf.whole("depth", 32)
        if isinstance(full, list) and all(isinstance(layer, int) for layer in full):
            full = sorted({layer for layer in full if 0 <= layer < layers})
        found |= {"window_size": hf.get("window_size"), "full_layers": full}
    hf.finish()
    return found


def to_hf(config: QwenVLConfig, language: Mapping[str, Any]) -> dict[str, Any]:
    """Config to ``config.json``.

    Args:
        config: the config.
        language: ``config.json`` of the language model.
    """
    known = MULTIMODAL_TYPES[config.kind]
    fixed = {"architectures", *known.fixed}
    text = {key: value for key, value in language.items() if key not in fixed}
    if not isinstance(config, Qwen35VLFields):  # which transformers 4 does not know
        rope = hf_rope_parameters(config.language.rope)
        # transformers 4 reads the base beside the other settings, transformers 5 in either place
        text.pop("rope_parameters")
        text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    return {
        "architectures": [known.architecture],
        "model_type": config.kind,
        "text_config": text | {"model_type": next(iter(known.text))},
        "vision_config": _vision_values(config),
        **{theirs: getattr(config, ours) for ours, theirs in IDS.items()},
        "tie_word_embeddings": config.language.tie_embeddings,
    }


def _vision_values(config: QwenVLConfig) -> dict[str, Any]:
    vision = config.image
    values = {theirs: getattr(vision, ours) for ours, theirs in SIZES.items()}
    values |= {"model_type": f"{config.kind}_vision"}
    values["hidden_act"] = hf_activation(vision.activation)
    if vision.rope_theta != 10000.0:  # transformers 4 knows no other, and no key for it
        rope = {"rope_type": "axial", "rope_theta": vision.rope_theta}
        values["rope_parameters"] = rope
    if isinstance(vision, Qwen3VisionConfig):
        taps = {"deepstack_visual_indexes": list(vision.tapped_layers)}
        values |= {} if isinstance(config, Qwen35VLFields) else taps
        return values | {"num_position_embeddings": vision.position_side**2}
    return values | {
        "window_size": vision.window_size,
        "fullatt_block_indexes": list(vision.full_layers),
    }


def tower_weights(config: QwenVLConfig) -> list[WeightName]:
    """Weight names of the tower."""
    return tower_names(config.image, "visual.")


def text_weights(config: Any) -> list[WeightName]:
    """Weight names of the language model: Qwen3-VL's experts are joined, ``[in, out]``."""
    names = list(family_of(config).hf_names(config))
    if not isinstance(config, Qwen3MoeConfig):
        return names
    return joined_experts(names, config.d_ff_expert, inputs_first=True)


def qwen25_name(part: Part, name: str) -> str:
    """Name in published files of Qwen2.5-VL, from a tensor's name in its part: the same."""
    return name


def qwen3_name(part: Part, name: str) -> str:
    """Name in published files of Qwen3-VL and Qwen 3.5, from a tensor's name in its part.

    >>> qwen3_name("text", "model.norm.weight"), qwen3_name("image", "visual.merger.norm")
    ('model.language_model.norm.weight', 'model.visual.merger.norm')
    """
    if part == "image":
        return f"model.{name}"
    inside = name.startswith("model.")
    return f"model.language_model.{name.removeprefix('model.')}" if inside else name


def read_processor(path: Path) -> PatchProcessorConfig:
    """Config of the processor that a directory describes."""
    return patch_processor.from_hf(read_file(path))


def prepare(
    config: QwenVLConfig, processor: PatchProcessorConfig, pictures: Sequence[Any]
) -> list[PreparedImage]:
    """Pictures as the tower reads them.

    Raises:
        DataError: a picture cannot be decoded, is too large or too thin, or the processor cuts
            other patches than the tower reads.
    """
    _check(config.image, processor)
    patches, grids = PatchProcessor(processor)(pictures)
    prepared, start = [], 0
    for grid in grids:
        count = grid[0] * grid[1]
        tokens = token_count(grid, config.image.merge_size)
        prepared.append(PreparedImage(patches[start : start + count], tokens, grid))
        start += count
    return prepared


def measure(
    config: QwenVLConfig, processor: PatchProcessorConfig, size: tuple[int, int]
) -> PreparedImage:
    """A picture of this height and width as the tower reads it, without its pixels."""
    _check(config.image, processor)
    grid, image = processor.grid(*size), config.image
    inputs = image.channels * image.frames * image.patch_size**2
    pixels = blank(grid[0] * grid[1], inputs)
    return PreparedImage(pixels, token_count(grid, image.merge_size), grid)


def _check(image: QwenVisionConfig, processor: PatchProcessorConfig) -> None:
    """Refuse patches of another size than the tower reads."""
    wanted = (image.patch_size, image.merge_size, image.frames)
    found = (processor.patch_size, processor.merge_size, processor.frames)
    if found != wanted:
        raise DataError(
            "image processor's patch size, merge size and frames",
            found=list(found),
            expected=f"{list(wanted)}, as the model has",
        )
