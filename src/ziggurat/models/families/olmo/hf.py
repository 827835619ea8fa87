"""OLMo 2 and 3 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import (
    hf_rope,
    hf_ropes_by_reach,
    read_ropes_by_reach,
)
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    read_windows,
    write_fields,
    write_windows,
)
from ziggurat.models.families.olmo.config import Olmo2Config, Olmo3Config

LOCAL_THETA = 5e5
"""Rotary base of OLMo 3's local layers, which ``rope_theta`` does not reach in transformers."""
NORMS = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}


def from_hf(values: Mapping[str, Any]) -> Olmo2Config | Olmo3Config:
    """``config.json`` of ``Olmo2ForCausalLM`` or ``Olmo3ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    third = hf.model_type == "olmo3"
    settings = read_fields(hf) | {"attention_bias": hf.get("attention_bias")}
    length = settings["max_sequence_length"]
    if third:
        layers = range(hf.whole("num_hidden_layers"))
        types = ["sliding_attention" if (i + 1) % 4 else "full_attention" for i in layers]
        settings |= read_windows(hf, types, hf.get("sliding_window"))
        ropes = read_ropes_by_reach(hf, length, LOCAL_THETA)
        settings["rope"], settings["local_rope"] = ropes
    else:
        settings |= read_rotary(hf, length)
    hf.finish()
    return checked(Olmo3Config if third else Olmo2Config, settings, "config.json")


def to_hf(config: Olmo2Config | Olmo3Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    values = write_fields(config) | {"attention_bias": config.attention_bias}
    if isinstance(config, Olmo2Config):
        name = {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"}
        return name | values | hf_rope(config.rope)
    return {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        **values,
        **write_windows(config),
        # transformers makes a cache only where there is a number, though no layer has a window
        "sliding_window": config.window or 4096,
        **hf_ropes_by_reach(config.rope, config.local_rope),
    }


def hf_names(config: Olmo2Config | Olmo3Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder(), NORMS)
