"""SigLIP in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.clip.hf import (
    common_settings,
    common_values,
    image_input_names,
    text_input_names,
    tower_names,
    tower_values,
)
from ziggurat.models.families.encoder_fields import linears, norms
from ziggurat.models.families.image_encoder_fields import hf_image, read_image
from ziggurat.models.families.siglip.config import SiglipConfig, SiglipImageConfig

UNREAD = ("is_causal", "is_decoder", "tie_word_embeddings")
"""Keys of a tower without effect."""


def from_hf(values: Mapping[str, Any]) -> SiglipConfig:
    """``config.json`` of ``SiglipModel`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = {
        "text": _text(tower_values(hf, values, "text")),
        "image": image_settings(tower_values(hf, values, "vision")),
    }
    hf.finish()
    return checked(SiglipConfig, settings, "config.json")


def _text(values: Mapping[str, Any]) -> dict[str, Any]:
    hf = HFConfig(values, "siglip_text_model")
    for key in UNREAD:
        hf.given(key)
    settings = common_settings(hf) | {
        "vocab_size": hf.get("vocab_size"),
        "max_sequence_length": hf.get("max_position_embeddings"),
        "projection": hf.given("projection_size"),
    }
    hf.finish()
    return settings


def image_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the encoder of images."""
    hf = HFConfig(values, "siglip_vision_model")
    for key in UNREAD:
        hf.given(key)
    hf.refuse_unless("vision_use_head", (True,), "images have no vector without it")
    settings = common_settings(hf) | read_image(hf)
    hf.finish()
    return settings


def to_hf(config: SiglipConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    text, image = config.text, config.image
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": common_values(text)
        | {
            "model_type": "siglip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_sequence_length,
            "projection_size": text.projection or text.d_model,
        },
        "vision_config": common_values(image)
        | hf_image(image)
        | {"model_type": "siglip_vision_model"},
    }


def hf_names(config: SiglipConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    text = "text_model."
    return [
        WeightName("logit_scale", "logit_scale"),
        WeightName("logit_bias", "logit_bias"),
        *text_input_names(text),
        *tower_names("text", text, config.text.n_layers),
        *norms({"text.final_norm": text + "final_layer_norm"}),
        *linears({"text.pooler.dense": text + "head"}),
        *image_names(config.image, "vision_model."),
    ]


def image_names(settings: SiglipImageConfig, image: str, *, head: bool = True) -> list[WeightName]:
    """Weight names of the encoder of images, as ``image`` of a model of two.

    Args:
        settings: the encoder.
        image: how names begin in the files.
        head: whether its pooler is there.
    """
    table = {
        "projection": image + "embeddings.patch_embedding",
        "positions": image + "embeddings.position_embedding.weight",
    }
    names = [
        *image_input_names(settings, table, bias=True),
        *tower_names("image", image, settings.n_layers),
        *norms({"image.final_norm": image + "post_layernorm"}),
    ]
    return names + (_pooler_names(settings.d_model, image + "head.") if head else [])


def _pooler_names(width: int, head: str) -> list[WeightName]:
    names = [
        WeightName("image.pooler.probe", head + "probe", stored_shape=(1, 1, width)),
        *norms({"image.pooler.norm": head + "layernorm"}),
        *linears(
            {
                "image.pooler.out": head + "attention.out_proj",
                "image.pooler.mlp.up": head + "mlp.fc1",
                "image.pooler.mlp.down": head + "mlp.fc2",
            }
        ),
    ]
    for number, part in enumerate(("query", "key", "value")):
        rows = AxisSlice(0, slice(number * width, (number + 1) * width))
        ours, theirs = f"image.pooler.{part}", head + "attention.in_proj_"
        kernel = WeightName(f"{ours}.kernel", theirs + "weight", transpose=True)
        bias = WeightName(f"{ours}.bias", theirs + "bias")
        names += [dataclasses.replace(name, part=rows) for name in (kernel, bias)]
    return names
