"""LLaVA in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models import image_processor
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.clip.hf import (
    common_values,
    image_input_names,
    image_settings,
    tower_names,
)
from ziggurat.models.families.encoder_fields import linears, norms
from ziggurat.models.families.image_encoder_fields import hf_image
from ziggurat.models.families.llava.config import LlavaConfig
from ziggurat.models.image_processor import ImageProcessor, ImageProcessorConfig
from ziggurat.models.vision_language_model import PreparedImage, blank

TOWER = "vision_tower."
CLIP = "clip_vision_model"


def from_hf(values: Mapping[str, Any], language: Any) -> LlavaConfig:
    """``config.json`` of ``LlavaForConditionalGeneration`` to config.

    Args:
        values: the file.
        language: config of the language model in it.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values, "llava")
    hf.given("text_config")
    image, layer = vision_table(hf, CLIP), hf.get("vision_feature_layer")
    settings = image_settings(image)
    settings["n_layers"] = depth_of(layer, settings["n_layers"])
    found = {
        "language": language,
        "image": settings | {"kind": "clip_image"},
        "image_token": hf.get("image_token_index"),
        "class_token": hf.get("vision_feature_select_strategy") == "full",
        "activation": activation(hf, "projector_hidden_act"),
        "projector_bias": hf.get("multimodal_projector_bias"),
    }
    hf.refuse_unless("vision_feature_select_strategy", ("default", "full"))
    hf.given("tie_word_embeddings")  # the language model's config has it
    hf.given("image_seq_length")  # it follows from the image's size
    hf.finish()
    return checked(LlavaConfig, found, "config.json")


def vision_table(hf: HFConfig, expected: str) -> dict[str, Any]:
    """The tower's settings.

    Raises:
        ModelError: they are no table, or of another type of model.
    """
    table = hf.given("vision_config")
    if not isinstance(table, Mapping):
        raise ModelError("config.json: vision_config", found=repr(table), expected="a table")
    kind = table.get("model_type", expected)
    if kind != expected:
        raise ModelError(
            "config.json: vision_config.model_type", found=repr(kind), expected=repr(expected)
        )
    return dict(table)


def depth_of(layer: Any, layers: int) -> int:
    """Layers up to the one whose states are read; -1 is the last.

    Raises:
        ModelError: it is no single layer of the tower.
    """
    whole = isinstance(layer, int) and not isinstance(layer, bool)
    depth = (layers + 1 + layer if layer < 0 else layer) if whole else 0
    if not 1 <= depth <= layers:
        raise ModelError(
            "config.json: vision_feature_layer",
            found=repr(layer),
            expected=f"one layer, from {-layers} to -1 or from 1 to {layers}",
        )
    return depth


def to_hf(config: LlavaConfig, language: Mapping[str, Any]) -> dict[str, Any]:
    """Config to ``config.json``.

    Args:
        config: the config.
        language: ``config.json`` of the language model.
    """
    vision = {"model_type": CLIP, "initializer_range": config.image.init_std}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": dict(language),
        "vision_config": vision | common_values(config.image) | hf_image(config.image),
        "image_token_index": config.image_token,
        "image_seq_length": config.image_tokens(*config.image.image_size),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full" if config.class_token else "default",
        "projector_hidden_act": hf_activation(config.activation),
        "multimodal_projector_bias": config.projector_bias,
        "tie_word_embeddings": language.get("tie_word_embeddings", False),
    }


def tower_weights(config: LlavaConfig) -> list[WeightName]:
    """Weight names of the tower and projector."""
    table = {
        "projection": TOWER + "embeddings.patch_embedding",
        "positions": TOWER + "embeddings.position_embedding.weight",
        "class_token": TOWER + "embeddings.class_embedding",
    }
    names = [
        *image_input_names(config.image, table, bias=False),
        *tower_names("image", TOWER, config.image.n_layers),
        *norms({"image.input.norm": TOWER + "pre_layrnorm"}),
        *norms({"image.pooler.norm": TOWER + "post_layernorm"}),
    ]
    projector = {"up": "linear_1", "down": "linear_2"}
    pairs = {f"projector.{n}": f"multi_modal_projector.{t}" for n, t in projector.items()}
    return encoder_names(names) + linears(pairs, bias=config.projector_bias)


def encoder_names(names: list[WeightName]) -> list[WeightName]:
    """Names of a tower of two as those of the encoder before a projector."""
    return [
        dataclasses.replace(name, ours="encoder." + name.ours.removeprefix("image."))
        for name in names
    ]


def ignored(config: LlavaConfig, name: str) -> bool:
    """Whether a tensor is of a layer behind the one whose states are read."""
    layer = name.removeprefix(TOWER + "encoder.layers.").partition(".")[0]
    behind = layer.isdigit() and int(layer) >= config.image.n_layers
    return behind or name == TOWER + "embeddings.position_ids"


def read_processor(path: Path) -> ImageProcessorConfig:
    """Config of the processor that a directory describes."""
    return image_processor.read_processor(path).config


def prepare(
    config: LlavaConfig, processor: ImageProcessorConfig, pictures: Sequence[Any]
) -> list[PreparedImage]:
    """Pictures as the tower reads them."""
    pixels = ImageProcessor(processor)(pictures)
    return [PreparedImage(one, config.image_tokens(*one.shape[1:])) for one in pixels]


def measure(
    config: LlavaConfig, processor: ImageProcessorConfig, size: tuple[int, int]
) -> PreparedImage:
    """A picture of this height and width as the tower reads it, without its pixels."""
    high, wide = ImageProcessor(processor).size_of(*size)
    return PreparedImage(blank(3, high, wide), config.image_tokens(high, wide))
