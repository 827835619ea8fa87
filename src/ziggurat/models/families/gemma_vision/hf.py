"""Gemma 3 with images in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models import image_processor
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.clip.hf import common_values
from ziggurat.models.families.gemma_vision.config import Gemma3VisionConfig
from ziggurat.models.families.image_encoder_fields import hf_image
from ziggurat.models.families.llava.hf import TOWER, encoder_names, vision_table
from ziggurat.models.families.siglip.hf import image_names, image_settings
from ziggurat.models.image_processor import ImageProcessor, ImageProcessorConfig
from ziggurat.models.vision_language_model import PreparedImage, blank

SIGLIP = "siglip_vision_model"
IDS = {
    "image_token": "image_token_index",
    "begin_token": "boi_token_index",
    "end_token": "eoi_token_index",
}


def from_hf(values: Mapping[str, Any], language: Any) -> Gemma3VisionConfig:
    """``config.json`` of ``Gemma3ForConditionalGeneration`` to config.

    Args:
        values: the file.
        language: config of the language model in it.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values, "gemma3")
    hf.given("text_config")
    table = vision_table(hf, SIGLIP)
    head = table.pop("vision_use_head", True)
    settings = {
        "language": language,
        "image": image_settings(table) | {"kind": "siglip_image"},
        "pooled_by_attention": head,
        "tokens_per_image": hf.get("mm_tokens_per_image"),
        **{ours: hf.get(theirs) for ours, theirs in IDS.items()},
    }
    hf.given("initializer_range")
    hf.given("tie_word_embeddings")  # the language model's config has it
    hf.finish()
    return checked(Gemma3VisionConfig, settings, "config.json")


def to_hf(config: Gemma3VisionConfig, language: Mapping[str, Any]) -> dict[str, Any]:
    """Config to ``config.json``.

    Args:
        config: the config.
        language: ``config.json`` of the language model.
    """
    vision = {"model_type": SIGLIP, "vision_use_head": config.pooled_by_attention}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": dict(language),
        "vision_config": vision | common_values(config.image) | hf_image(config.image),
        "mm_tokens_per_image": config.tokens_per_image,
        **{theirs: getattr(config, ours) for ours, theirs in IDS.items()},
        "tie_word_embeddings": language.get("tie_word_embeddings", True),
    }


def tower_weights(config: Gemma3VisionConfig) -> list[WeightName]:
    """Weight names of the tower and projector."""
    head = config.pooled_by_attention
    names = encoder_names(image_names(config.image, TOWER, head=head))
    there = "multi_modal_projector.mm_"
    return [
        *names,
        WeightName("projector.norm.scale", there + "soft_emb_norm.weight"),
        WeightName("projector.kernel", there + "input_projection_weight"),
    ]


def ignored(config: Gemma3VisionConfig, name: str) -> bool:
    """Whether a tensor is a buffer that repeats what the config says."""
    return name == TOWER + "embeddings.position_ids"


def read_processor(path: Path) -> ImageProcessorConfig:
    """Config of the processor that a directory describes."""
    return image_processor.read_processor(path).config


def prepare(
    config: Gemma3VisionConfig, processor: ImageProcessorConfig, pictures: Sequence[Any]
) -> list[PreparedImage]:
    """Pictures as the tower reads them.

    Raises:
        ModelError: the processor makes pixels of another size than the tower reads.
    """
    _check(config, processor)
    pixels = ImageProcessor(processor)(pictures)
    return [PreparedImage(one, config.tokens_per_image) for one in pixels]


def measure(
    config: Gemma3VisionConfig, processor: ImageProcessorConfig, size: tuple[int, int]
) -> PreparedImage:
    """A picture of any height and width as the tower reads it, without its pixels."""
    _check(config, processor)
    return PreparedImage(blank(3, *config.image.image_size), config.tokens_per_image)


def _check(config: Gemma3VisionConfig, processor: ImageProcessorConfig) -> None:
    if processor.size != config.image.image_size:
        raise ModelError(
            "image processor",
            found=f"pixels of size {processor.size}",
            expected=f"{config.image.image_size}, as the tower reads",
        )
