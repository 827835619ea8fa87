"""Gemma 2 and 3 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked
from ziggurat.models.conversion.rotary_settings import (
    hf_rope,
    hf_rope_parameters,
    read_rope,
    rope_of,
)
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_pattern,
    write_fields,
    write_pattern,
)
from ziggurat.models.families.gemma.config import Gemma2Config, Gemma3Config
from ziggurat.nn.rope import RopeConfig

ACTIVATION = "hidden_activation"
NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def from_hf(values: Mapping[str, Any]) -> Gemma2Config | Gemma3Config:
    """``config.json`` of ``Gemma2ForCausalLM`` or ``Gemma3ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    third = hf.model_type == "gemma3_text"
    settings = read_fields(hf, ACTIVATION)
    _same_activation(hf, settings["activation"])
    hf.refuse_unless("use_bidirectional_attention", (False,), "attention here is causal")
    settings |= {
        "attention_bias": hf.get("attention_bias"),
        "query_scale": hf.get("query_pre_attn_scalar"),
        "logit_softcap": _softcap(hf, "final_logit_softcapping"),
    }
    layers = hf.whole("num_hidden_layers")
    every = max(hf.whole("sliding_window_pattern", 6), 1) if third else 2
    types = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    settings["pattern"] = read_pattern(hf, layers, types)
    settings["window"] = hf.get("sliding_window", 4096)
    if "local" in settings["pattern"] and hf.get("sliding_window") is None:
        raise ModelError("config.json: sliding_window", found="null", expected="a number >= 1")
    if third:
        hf.given("attn_logit_softcapping")  # transformers holds it and applies it nowhere
        settings |= _ropes(hf, settings["max_sequence_length"])
    else:
        hf.refuse_unless("sliding_window_pattern", (2,), "transformers knows layer_types alone")
        hf.refuse_unless("sliding_window_size", (settings["window"],), "it is sliding_window")
        settings["attention_softcap"] = _softcap(hf, "attn_logit_softcapping")
        settings["rope"] = read_rope(hf, settings["max_sequence_length"])
    hf.finish()
    return checked(Gemma3Config if third else Gemma2Config, settings, "config.json")


def _same_activation(hf: HFConfig, found: str) -> None:
    """Refuse a ``hidden_act`` that differs from ``hidden_activation``, which transformers reads."""
    if hf.given("hidden_act") is not None and activation(hf, "hidden_act") != found:
        raise ModelError(
            "config.json: hidden_act",
            found=repr(hf.given("hidden_act")),
            expected=f"the function of {ACTIVATION}, or nothing",
        )


def _softcap(hf: HFConfig, key: str) -> Any:
    """A bound; 0 stands for none in our config, and is no bound in theirs."""
    cap = hf.get(key)
    if cap == 0:
        raise ModelError(f"config.json: {key}", found=cap, expected="null, or a positive number")
    return 0.0 if cap is None else cap


def _ropes(hf: HFConfig, length: int) -> dict[str, RopeConfig]:
    """Rotary settings of local and global layers.

    They are nested in ``rope_parameters`` by type of layer (transformers 5), or stand in
    ``rope_theta``, ``rope_scaling`` (of global layers) and ``rope_local_base_freq`` (transformers
    4).
    """
    given = hf.get("rope_parameters")
    nested = {key: given.get(key) or {} for key in ("full_attention", "sliding_attention")}
    extra = sorted(given.keys() - nested.keys())
    if extra:
        raise ModelError(
            "config.json: rope_parameters",
            found=", ".join(extra),
            expected="full_attention and sliding_attention",
        )
    whole = {**nested["full_attention"], **hf.get("rope_scaling", {})}
    # transformers looks for `truncate` beside the two, where it never is
    rounded = {"truncate": True}
    theta, local = hf.get("rope_theta"), hf.get("rope_local_base_freq")
    return {
        "rope": rope_of(whole | rounded, theta, length),
        "local_rope": rope_of(nested["sliding_attention"] | rounded, local, length),
    }


def to_hf(config: Gemma2Config | Gemma3Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    values = {
        **write_fields(config, ACTIVATION),
        **hf_rope(config.rope),
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": _whole(config.query_scale),
        "sliding_window": config.window,
        "layer_types": write_pattern(config.pattern, config.n_layers),
        "final_logit_softcapping": config.logit_softcap or None,
    }
    if isinstance(config, Gemma2Config):
        return values | {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "attn_logit_softcapping": config.attention_softcap or None,
        }
    return values | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "rope_local_base_freq": config.local_rope.theta,
        "rope_parameters": {
            "full_attention": hf_rope_parameters(config.rope),
            "sliding_attention": hf_rope_parameters(config.local_rope),
        },
    }


def _whole(value: float) -> float | int:
    """As an integer, which transformers insists on."""
    if value != int(value):
        raise ModelError(
            "export to Hugging Face: query_scale", found=value, expected="a whole number"
        )
    return int(value)


def hf_names(config: Gemma2Config | Gemma3Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    return decoder_names(config.decoder(), NORMS)
