"""Nemotron in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope, partial_rotary_factor
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    write_fields,
)
from ziggurat.models.families.nemotron.config import NemotronConfig

EPS = "norm_eps"


def from_hf(values: Mapping[str, Any]) -> NemotronConfig:
    """``config.json`` of ``NemotronForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, eps=EPS)
    settings |= read_rotary(hf, settings["max_sequence_length"], partial=True)
    settings["partial_rotary_factor"] = partial_rotary_factor(hf, 0.5)
    settings |= {key: hf.get(key) for key in ("attention_bias", "mlp_bias")}
    hf.finish()
    return checked(NemotronConfig, settings, "config.json")


def to_hf(config: NemotronConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["NemotronForCausalLM"],
        "model_type": "nemotron",
        **write_fields(config, eps=EPS, mlp=config.plain_mlp()),
        **hf_rope(config.rope),
        "partial_rotary_factor": config.partial_rotary_factor,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def hf_names(config: NemotronConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder())
