"""Qwen2.5-VL and Qwen3-VL in Hugging Face's ``config.json``."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ziggurat.core.errors import DataError, ModelError
from ziggurat.models import patch_processor
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.rotary_settings import hf_rope_parameters
from ziggurat.models.conversion.text_part import MULTIMODAL_TYPES, Part
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.qwen_vl.config import Qwen3VLConfig, Qwen25VLConfig, QwenVLConfig
from ziggurat.models.families.qwen_vl.names import tower_names
from ziggurat.models.families.qwen_vl.vision import Qwen3VisionConfig, QwenVisionConfig
from ziggurat.models.image_places import token_count
from ziggurat.models.image_processor import read_file
from ziggurat.models.patch_processor import PatchProcessor, PatchProcessorConfig
from ziggurat.models.vision_language_model import PreparedImage, blank

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
    cls = Qwen3VLConfig if kind == "qwen3_vl" else Qwen25VLConfig
    table = hf.given("vision_config")
    if not isinstance(table, Mapping):
        raise ModelError("config.json: vision_config", found=repr(table), expected="a table")
    found = {ours: hf.get(theirs) for ours, theirs in IDS.items()}
    found |= {"language": language, "image": _tower(table, third=cls is Qwen3VLConfig)}
    return checked(cls, found, "config.json")


def _tower(values: Mapping[str, Any], *, third: bool) -> dict[str, Any]:
    hf = HFConfig(values, "qwen3_vl_vision" if third else "qwen2_5_vl_vision")
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
    if third:
        rows = hf.whole("num_position_embeddings", 2304)
        side = math.isqrt(rows)
        if side * side != rows:
            raise ModelError(
                "config.json: num_position_embeddings", found=rows, expected="a square number"
            )
        taps = hf.get("deepstack_visual_indexes")
        found |= {"position_side": side, "tapped_layers": taps}
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
    text = {k: v for k, v in language.items() if k not in ("architectures", "rope_parameters")}
    rope = hf_rope_parameters(config.language.rope)
    # transformers 4 reads the base beside the other settings, transformers 5 in either place
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    return {
        "architectures": [known.architecture],
        "model_type": config.kind,
        "text_config": text | {"model_type": next(iter(known.text))},
        "vision_config": _vision_values(config.image),
        **{theirs: getattr(config, ours) for ours, theirs in IDS.items()},
        "tie_word_embeddings": config.language.tie_embeddings,
    }


def _vision_values(vision: QwenVisionConfig) -> dict[str, Any]:
    values = {theirs: getattr(vision, ours) for ours, theirs in SIZES.items()}
    values["hidden_act"] = hf_activation(vision.activation)
    if vision.rope_theta != 10000.0:  # transformers 4 knows no other, and no key for it
        rope = {"rope_type": "axial", "rope_theta": vision.rope_theta}
        values["rope_parameters"] = rope
    if isinstance(vision, Qwen3VisionConfig):
        return values | {
            "model_type": "qwen3_vl_vision",
            "num_position_embeddings": vision.position_side**2,
            "deepstack_visual_indexes": list(vision.tapped_layers),
        }
    return values | {
        "model_type": "qwen2_5_vl_vision",
        "window_size": vision.window_size,
        "fullatt_block_indexes": list(vision.full_layers),
    }


def tower_weights(config: QwenVLConfig) -> list[WeightName]:
    """Weight names of the tower."""
    return tower_names(config.image, "visual.")


def qwen25_name(part: Part, name: str) -> str:
    """Name in published files of Qwen2.5-VL, from a tensor's name in its part: the same."""
    return name


def qwen3_name(part: Part, name: str) -> str:
    """Name in published files of Qwen3-VL, from a tensor's name in its part.

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
