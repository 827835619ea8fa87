"""Granite in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    write_fields,
)
from ziggurat.models.families.granite.config import GraniteConfig

SWITCHES = (
    "attention_bias",
    "mlp_bias",
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
)


def from_hf(values: Mapping[str, Any]) -> GraniteConfig:
    """``config.json`` of ``GraniteForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    settings |= {key: hf.get(key) for key in SWITCHES}
    hf.finish()
    return checked(GraniteConfig, settings, "config.json")


def to_hf(config: GraniteConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        **write_fields(config),
        **hf_rope(config.rope),
        **{key: getattr(config, key) for key in SWITCHES},
    }


def hf_names(config: GraniteConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder())
