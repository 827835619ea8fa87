"""Seed-OSS in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    with_head_dim,
    write_fields,
)
from ziggurat.models.families.seed_oss.config import SeedOssConfig

BIASES = ("attention_bias", "attention_out_bias", "mlp_bias")


def from_hf(values: Mapping[str, Any]) -> SeedOssConfig:
    """``config.json`` of ``SeedOssForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(with_head_dim(values))
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    settings |= {key: hf.get(key) for key in BIASES}
    hf.finish()
    return checked(SeedOssConfig, settings, "config.json")


def to_hf(config: SeedOssConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["SeedOssForCausalLM"],
        "model_type": "seed_oss",
        **write_fields(config),
        **hf_rope(config.rope),
        **{key: getattr(config, key) for key in BIASES},
    }


def hf_names(config: SeedOssConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder())
