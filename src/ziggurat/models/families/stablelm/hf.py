"""StableLM in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
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
from ziggurat.models.families.stablelm.config import StableLmConfig

EPS = "layer_norm_eps"
SWITCHES = {
    "attention_bias": "use_qkv_bias",
    "head_norm": "qk_layernorm",
    "parallel": "use_parallel_residual",
}


def from_hf(values: Mapping[str, Any]) -> StableLmConfig:
    """``config.json`` of ``StableLmForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, eps=EPS)
    settings |= read_rotary(hf, settings["max_sequence_length"], partial=True)
    settings["partial_rotary_factor"] = partial_rotary_factor(hf, 0.25)
    settings |= {ours: hf.get(theirs) for ours, theirs in SWITCHES.items()}
    hf.finish()
    return checked(StableLmConfig, settings, "config.json")


def to_hf(config: StableLmConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        **write_fields(config, eps=EPS),
        **hf_rope(config.rope),
        "partial_rotary_factor": config.partial_rotary_factor,
        **{theirs: getattr(config, ours) for ours, theirs in SWITCHES.items()},
    }


def hf_names(config: StableLmConfig) -> list[WeightName]:
    """Weight names in safetensors files; each head's norm is a tensor there."""
    norms = {"attention_norm": "input_layernorm"} if config.parallel else None
    attention = config.attention()
    heads = {"q": attention.heads, "k": attention.kv_heads}

    def of_heads(name: WeightName) -> WeightName:
        for letter, count in heads.items():
            if f".{letter}_norm." in name.theirs:
                one = f".{letter}_layernorm.norms.{{expert}}."
                theirs = name.theirs.replace(f".{letter}_norm.", one)
                return dataclasses.replace(name, theirs=theirs, experts=count)
        return name

    return [of_heads(name) for name in decoder_names(config.decoder(), norms)]
