"""EXAONE 4 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    read_windows,
    write_fields,
    write_windows,
)
from ziggurat.models.families.exaone4.config import Exaone4Config

NORMS = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}


def from_hf(values: Mapping[str, Any]) -> Exaone4Config:
    """``config.json`` of ``Exaone4ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    window = hf.get("sliding_window")
    settings["global_rope"] = window is None
    settings |= read_windows(hf, _layer_types(hf, window), window)
    hf.finish()
    return checked(Exaone4Config, settings, "config.json")


def _layer_types(hf: HFConfig, window: Any) -> list[str]:
    """The layers' types where ``layer_types`` does not say."""
    layers = range(hf.whole("num_hidden_layers"))
    every = hf.given("sliding_window_pattern") or 4
    if window is None or hf.given("layer_types") is not None:  # the pattern means nothing then
        return ["full_attention"] * len(layers)
    if not isinstance(every, int):
        raise ModelError(
            "config.json: sliding_window_pattern",
            found=repr(every),
            expected="a whole number",
            fix="give layer_types instead",
        )
    return ["sliding_attention" if (i + 1) % every else "full_attention" for i in layers]


def to_hf(config: Exaone4Config) -> dict[str, Any]:
    """Config to ``config.json``.

    Raises:
        ModelError: global layers have positions beside local ones, which transformers does not
            have.
    """
    values = {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        **write_fields(config),
        **hf_rope(config.rope),
        **write_windows(config),
    }
    if config.global_rope and config.window is not None:
        raise ModelError(
            "export to Hugging Face: global_rope",
            found="positions in global layers beside local ones",
            expected="global_rope = false where a layer is local",
        )
    if not config.global_rope and config.window is None:
        values["sliding_window"] = (
            config.max_sequence_length
        )  # of no layer; it takes positions away
    return values


def hf_names(config: Exaone4Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder(), NORMS)
