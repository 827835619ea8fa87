"""Mixtral in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    read_fields,
    read_rotary,
    same_reach,
    write_fields,
)
from ziggurat.models.families.mixtral.config import MixtralConfig


def from_hf(values: Mapping[str, Any]) -> MixtralConfig:
    """``config.json`` of ``MixtralForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    settings |= {
        **read_rotary(hf, settings["max_sequence_length"]),
        "window": hf.get("sliding_window"),
        "n_experts": hf.get("num_local_experts"),
        "experts_per_token": hf.get("num_experts_per_tok"),
    }
    same_reach(hf, settings["window"])
    hf.finish()
    return checked(MixtralConfig, settings, "config.json")


def to_hf(config: MixtralConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **write_fields(config),
        **hf_rope(config.rope),
        "sliding_window": config.window,
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.experts_per_token,
    }


def hf_names(config: MixtralConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    names = block_names.ends(d)
    for stack, layers in block_names.stacked_layers(d).items():
        names += block_names.scales(stack, block_names.PRE_NORMS, layers)
        names += block_names.grouped_attention(stack, config.attention(), layers)
        router = {"mlp.router": "block_sparse_moe.gate"}
        names += block_names.projections(stack, router, layers)
        parts = {"gate": "w1", "up": "w3", "down": "w2"}
        there = "block_sparse_moe.experts"
        names += block_names.experts(stack, layers, config.n_experts, there, parts)
    return names
