"""GLM-4 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_order import attention_orders, reordered
from ziggurat.models.conversion.rotary_settings import hf_rope, partial_rotary_factor
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    write_fields,
)
from ziggurat.models.families.glm.config import Glm4Config, GlmConfig

SANDWICH = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_mlp_layernorm",
}


def from_hf(values: Mapping[str, Any]) -> GlmConfig | Glm4Config:
    """``config.json`` of ``GlmForCausalLM`` or ``Glm4ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"], partial=True)
    settings["partial_rotary_factor"] = partial_rotary_factor(hf, 0.5)
    settings["attention_bias"] = hf.get("attention_bias")
    hf.finish()
    return checked(Glm4Config if hf.model_type == "glm4" else GlmConfig, settings, "config.json")


def to_hf(config: GlmConfig | Glm4Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    name = "Glm4" if isinstance(config, Glm4Config) else "Glm"
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": name.lower(),
        **write_fields(config),
        **hf_rope(config.rope),
        "partial_rotary_factor": config.partial_rotary_factor,
        "attention_bias": config.attention_bias,
    }


def hf_names(config: GlmConfig | Glm4Config) -> list[WeightName]:
    """Weight names in safetensors files: gate and up are one tensor there, and rotating channels
    stand in pairs."""
    norms = SANDWICH if isinstance(config, Glm4Config) else None
    orders = attention_orders(config.attention(rotary_dim=config.rotary_dim))
    names = [reordered(name, orders) for name in decoder_names(config.decoder(), norms)]
    return block_names.joined_gate(names, config.mlp().hidden)
