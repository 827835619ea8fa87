"""Phi-3 and Phi-4 in Hugging Face's ``config.json`` and safetensors."""

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
    same_reach,
    write_fields,
)
from ziggurat.models.families.phi3.config import Phi3Config
from ziggurat.nn.rope import LongRopeScaling

OLDER_TYPES = ("su", "yarn")
"""Names of LongRoPE in files of early 2024."""


def from_hf(values: Mapping[str, Any]) -> Phi3Config:
    """``config.json`` of ``Phi3ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig({key: _renamed(key, value) for key, value in values.items()})
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"], partial=True)
    settings["partial_rotary_factor"] = partial_rotary_factor(hf)
    settings["window"] = hf.get("sliding_window")
    same_reach(hf, settings["window"])
    hf.finish()
    return checked(Phi3Config, settings, "config.json")


def _renamed(key: str, value: Any) -> Any:
    """Rotary settings with today's name of their type."""
    if key not in ("rope_scaling", "rope_parameters") or not isinstance(value, Mapping):
        return value
    older = value.get("rope_type", value.get("type")) in OLDER_TYPES
    return {**value, "rope_type": "longrope"} if older else value


def to_hf(config: Phi3Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    values = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **write_fields(config),
        **hf_rope(config.rope),
        "partial_rotary_factor": config.partial_rotary_factor,
        "sliding_window": config.window,
    }
    scaling = config.rope.scaling
    if isinstance(scaling, LongRopeScaling):  # transformers looks here rather than in rope_scaling
        values["original_max_position_embeddings"] = scaling.original_length
    return values


def hf_names(config: Phi3Config) -> list[WeightName]:
    """Weight names in safetensors files: query, key and value are one tensor there, and gate and up
    another."""
    attention, mlp = config.attention(), config.mlp()
    rows = {"q": attention.heads, "k": attention.kv_heads, "v": attention.kv_heads}
    qkv = {f"self_attn.{n}_proj": heads * attention.head_dim for n, heads in rows.items()}
    names = decoder_names(config.decoder())
    names = block_names.joined(names, "self_attn.qkv_proj", block_names.in_order(qkv))
    return block_names.joined_gate(names, mlp.hidden)
