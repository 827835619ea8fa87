"""Phi-1, Phi-1.5 and Phi-2 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope, partial_rotary_factor
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    write_fields,
)
from ziggurat.models.families.phi.config import PhiConfig

EPS = "layer_norm_eps"
NAMES = {
    "model.norm": "model.final_layernorm",
    "self_attn.o_proj": "self_attn.dense",
    "self_attn.q_norm": "self_attn.q_layernorm",
    "self_attn.k_norm": "self_attn.k_layernorm",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}


def from_hf(values: Mapping[str, Any]) -> PhiConfig:
    """``config.json`` of ``PhiForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, eps=EPS)
    settings |= read_rotary(hf, settings["max_sequence_length"], partial=True)
    settings["partial_rotary_factor"] = partial_rotary_factor(hf, 0.5)
    settings["head_norm"] = hf.get("qk_layernorm")
    hf.finish()
    return checked(PhiConfig, settings, "config.json")


def to_hf(config: PhiConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        **write_fields(config, eps=EPS, mlp=config.plain_mlp()),
        **hf_rope(config.rope),
        "partial_rotary_factor": config.partial_rotary_factor,
        "qk_layernorm": config.head_norm,
    }


def hf_names(config: PhiConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    names = decoder_names(config.decoder(), {"attention_norm": "input_layernorm"})
    return block_names.renamed(names, NAMES)
