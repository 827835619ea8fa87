"""Arcee's models in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.arcee.config import ArceeConfig
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    write_fields,
)


def from_hf(values: Mapping[str, Any]) -> ArceeConfig:
    """``config.json`` of ``ArceeForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    settings |= {key: hf.get(key) for key in ("attention_bias", "mlp_bias")}
    hf.finish()
    return checked(ArceeConfig, settings, "config.json")


def to_hf(config: ArceeConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["ArceeForCausalLM"],
        "model_type": "arcee",
        **write_fields(config, mlp=config.plain_mlp()),
        **hf_rope(config.rope),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def hf_names(config: ArceeConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder())
