"""SmolLM3 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    reach_of_layers,
    read_fields,
    read_rotary,
    read_windows,
    shortest_period,
    write_fields,
    write_windows,
)
from ziggurat.models.families.smollm3.config import SmolLM3Config


def from_hf(values: Mapping[str, Any]) -> SmolLM3Config:
    """``config.json`` of ``SmolLM3ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    settings |= {key: hf.get(key) for key in ("attention_bias", "mlp_bias")}
    rotary = _rotary_layers(hf)
    settings["rotary_layers"] = shortest_period(rotary)
    window, slides = hf.get("sliding_window"), hf.get("use_sliding_window")
    window = window if slides else None
    local = [window is not None and not turns for turns in rotary]
    types = ["sliding_attention" if here else "full_attention" for here in local]
    settings |= read_windows(hf, types, window)
    hf.given("max_window_layers")  # of Qwen, in published files; nothing looks at it here
    hf.finish()
    return checked(SmolLM3Config, settings, "config.json")


def _rotary_layers(hf: HFConfig) -> list[bool]:
    """Which layers have positions: 1 in ``no_rope_layers`` (sic), or all but every so many."""
    layers, every = hf.whole("num_hidden_layers"), hf.whole("no_rope_layer_interval", 4)
    given = hf.given("no_rope_layers")
    if given is None:
        return [every == 0 or (i + 1) % every != 0 for i in range(layers)]
    if not isinstance(given, list) or len(given) < layers:
        raise ModelError(
            "config.json: no_rope_layers",
            found=repr(given),
            expected=f"{layers} entries: 1 for a layer with positions, 0 for one without",
        )
    return [bool(entry) for entry in given[:layers]]


def to_hf(config: SmolLM3Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    rotary = reach_of_layers(config.rotary_layers, config.n_layers)
    return {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        **write_fields(config),
        **hf_rope(config.rope),
        **write_windows(config),
        "use_sliding_window": config.window is not None,
        "no_rope_layers": [int(turns) for turns in rotary],
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def hf_names(config: SmolLM3Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder())
