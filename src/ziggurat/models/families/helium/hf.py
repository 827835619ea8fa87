"""Helium in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_order import attention_orders, reordered
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    write_fields,
)
from ziggurat.models.families.helium.config import HeliumConfig


def from_hf(values: Mapping[str, Any]) -> HeliumConfig:
    """``config.json`` of ``HeliumForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    settings |= {key: hf.get(key) for key in ("attention_bias", "mlp_bias")}
    hf.finish()
    return checked(HeliumConfig, settings, "config.json")


def to_hf(config: HeliumConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["HeliumForCausalLM"],
        "model_type": "helium",
        **write_fields(config),
        **hf_rope(config.rope),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def hf_names(config: HeliumConfig) -> list[WeightName]:
    """Weight names in safetensors files, where rotating channels stand in pairs."""
    orders = attention_orders(config.attention())
    return [reordered(name, orders) for name in decoder_names(config.decoder())]
