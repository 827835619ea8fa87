"""Qwen 2 and 3 with mixtures of experts in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope, read_sections
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    read_fields,
    read_pattern,
    read_rotary,
    same_reach,
    write_fields,
)
from ziggurat.models.families.mixture_fields import (
    feed_forward_names,
    read_sparse_layers,
    write_sparse_layers,
)
from ziggurat.models.families.qwen_moe.config import Qwen2MoeConfig, Qwen3MoeConfig
from ziggurat.nn.attention import GroupedAttentionConfig


def from_hf(values: Mapping[str, Any]) -> Qwen2MoeConfig | Qwen3MoeConfig:
    """``config.json`` of ``Qwen2MoeForCausalLM`` or ``Qwen3MoeForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    settings |= read_sparse_layers(hf, settings["n_layers"])
    settings |= read_rotary(hf, settings["max_sequence_length"])
    if hf.model_type == "qwen2_moe":
        settings |= {
            "d_ff_shared": hf.get("shared_expert_intermediate_size"),
            "attention_bias": hf.get("qkv_bias"),
            **_windows_in_turn(hf),
        }
        hf.finish()
        return checked(Qwen2MoeConfig, settings, "config.json")
    sections = read_sections(hf)  # of Qwen3-VL's decoder, which differs in nothing else
    if sections is not None:
        rope = dataclasses.replace(settings["rope"], sections=sections, interleaved=True)
        settings["rope"] = rope
    window, slides = hf.get("sliding_window"), hf.get("use_sliding_window")
    window = window if slides else None
    if window is not None:  # transformers lets all layers slide, whatever this key says
        hf.refuse_unless("max_window_layers", (0,), "layers that do not slide")
    hf.given("max_window_layers")
    settings |= {"window": window, "attention_bias": hf.get("attention_bias")}
    same_reach(hf, window)
    hf.finish()
    return checked(Qwen3MoeConfig, settings, "config.json")


def _windows_in_turn(hf: HFConfig) -> dict[str, Any]:
    """Window and pattern of Qwen 2: every other layer below ``max_window_layers`` slides."""
    layers, last = hf.whole("num_hidden_layers"), hf.whole("max_window_layers", 28)
    window, slides = hf.get("sliding_window"), hf.get("use_sliding_window")
    usual = [
        "sliding_attention" if slides and i % 2 == 0 and i < last else "full_attention"
        for i in range(layers)
    ]
    pattern = read_pattern(hf, layers, usual)
    if "local" not in pattern:
        return {"window": None, "pattern": None}
    if not slides:  # transformers sets the window to 0 then
        hf.refuse_unless("layer_types", (), "layers that slide need use_sliding_window")
    return {"window": window, "pattern": pattern}


def to_hf(config: Qwen2MoeConfig | Qwen3MoeConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    second = isinstance(config, Qwen2MoeConfig)
    values = {
        "architectures": ["Qwen2MoeForCausalLM" if second else "Qwen3MoeForCausalLM"],
        "model_type": "qwen2_moe" if second else "qwen3_moe",
        **write_fields(config),
        **hf_rope(config.rope),
        **write_sparse_layers(config),
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
    }
    if not isinstance(config, Qwen2MoeConfig):
        return values | {"attention_bias": config.attention_bias}
    types = {"global": "full_attention", "local": "sliding_attention"}
    return values | {
        "qkv_bias": config.attention_bias,
        "shared_expert_intermediate_size": config.d_ff_shared,
        "layer_types": [types[reach] for reach in config.reaches],
    }


def hf_names(config: Qwen2MoeConfig | Qwen3MoeConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    names = block_names.ends(d)
    for (stack, layers), block in zip(block_names.stacked_layers(d).items(), d.stacks):
        assert isinstance(block.mixer, GroupedAttentionConfig)
        names += block_names.scales(stack, block_names.PRE_NORMS, layers)
        names += block_names.grouped_attention(stack, block.mixer, layers)
        names += feed_forward_names(stack, block.mlp, layers)
    return names
