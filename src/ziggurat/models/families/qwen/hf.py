"""Qwen 2 and 3 in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope, read_sections
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_pattern,
    read_rotary,
    write_fields,
    write_pattern,
)
from ziggurat.models.families.qwen.config import Qwen2Config, Qwen3Config


def from_hf(values: Mapping[str, Any]) -> Qwen2Config | Qwen3Config:
    """``config.json`` of ``Qwen2ForCausalLM`` or ``Qwen3ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    third = hf.model_type == "qwen3"
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    sections = read_sections(hf)  # of Qwen-VL's decoders, which differ in nothing else
    if sections is not None:
        settings["rope"] = dataclasses.replace(
            settings["rope"], sections=sections, interleaved=third
        )
    layers, first = hf.whole("num_hidden_layers"), hf.whole("max_window_layers", 28)
    window = hf.get("sliding_window")
    slides = hf.get("use_sliding_window") and window is not None
    full = min(first, layers) if slides else layers
    types = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    settings["pattern"] = read_pattern(hf, layers, types)
    settings["window"] = window if slides and "local" in settings["pattern"] else None
    if third:
        settings["attention_bias"] = hf.get("attention_bias")
    hf.finish()
    return checked(Qwen3Config if third else Qwen2Config, settings, "config.json")


def to_hf(config: Qwen2Config | Qwen3Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    third = isinstance(config, Qwen3Config)
    name = "Qwen3" if third else "Qwen2"
    values = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": name.lower(),
        **write_fields(config),
        **hf_rope(config.rope),
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "max_window_layers": config.n_layers,
        "layer_types": write_pattern(config.pattern, config.n_layers),
    }
    return values | ({"attention_bias": config.attention_bias} if third else {})


def hf_names(config: Qwen2Config | Qwen3Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder())
