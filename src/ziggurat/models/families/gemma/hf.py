"""Gemma 1, 2 and 3 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked
from ziggurat.models.conversion.rotary_settings import (
    hf_rope,
    hf_ropes_by_reach,
    read_ropes_by_reach,
)
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_pattern,
    read_rotary,
    write_fields,
    write_pattern,
)
from ziggurat.models.families.gemma.config import Gemma2Config, Gemma3Config, GemmaConfig

ACTIVATION = "hidden_activation"
NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def from_hf(values: Mapping[str, Any]) -> GemmaConfig | Gemma2Config | Gemma3Config:
    """``config.json`` of ``GemmaForCausalLM``, ``Gemma2ForCausalLM`` or ``Gemma3ForCausalLM`` to
    config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    if hf.model_type == "gemma":
        return _gemma1(hf)
    third = hf.model_type == "gemma3_text"
    settings = read_fields(hf, ACTIVATION)
    _same_activation(hf, settings["activation"])
    hf.refuse_unless("use_bidirectional_attention", (False,), "attention here is causal")
    settings |= {
        "attention_bias": hf.get("attention_bias"),
        "query_scale": hf.get("query_pre_attn_scalar"),
        "logit_softcap": read_softcap(hf, "final_logit_softcapping"),
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
        local = hf.get("rope_local_base_freq")
        ropes = read_ropes_by_reach(hf, settings["max_sequence_length"], local)
        settings["rope"], settings["local_rope"] = ropes
    else:
        hf.refuse_unless("sliding_window_pattern", (2,), "transformers knows layer_types alone")
        hf.refuse_unless("sliding_window_size", (settings["window"],), "it is sliding_window")
        settings["attention_softcap"] = read_softcap(hf, "attn_logit_softcapping")
        settings |= read_rotary(hf, settings["max_sequence_length"])
    hf.finish()
    return checked(Gemma3Config if third else Gemma2Config, settings, "config.json")


def _gemma1(hf: HFConfig) -> GemmaConfig:
    """Files of early 2024 say ``gelu`` and mean its approximation by tanh, which transformers uses
    then."""
    settings = read_fields(hf)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    if hf.get("hidden_act") == "gelu":
        settings["activation"] = "gelu_tanh"
    newer = hf.given(ACTIVATION)
    if newer is not None and activation(hf, ACTIVATION) != settings["activation"]:
        raise ModelError(
            f"config.json: {ACTIVATION}",
            found=repr(newer),
            expected="the function of hidden_act, which transformers reads, or nothing",
        )
    settings["attention_bias"] = hf.get("attention_bias")
    hf.refuse_unless("use_bidirectional_attention", (False,), "attention here is causal")
    hf.finish()
    return checked(GemmaConfig, settings, "config.json")


def _same_activation(hf: HFConfig, found: str) -> None:
    """Refuse a ``hidden_act`` that differs from ``hidden_activation``, which transformers reads."""
    if hf.given("hidden_act") is not None and activation(hf, "hidden_act") != found:
        raise ModelError(
            "config.json: hidden_act",
            found=repr(hf.given("hidden_act")),
            expected=f"the function of {ACTIVATION}, or nothing",
        )


def read_softcap(hf: HFConfig, key: str) -> Any:
    """A bound; 0 stands for none in our config, and is no bound in theirs."""
    cap = hf.get(key)
    if cap == 0:
        raise ModelError(f"config.json: {key}", found=cap, expected="null, or a positive number")
    return 0.0 if cap is None else cap


def to_hf(config: GemmaConfig | Gemma2Config | Gemma3Config) -> dict[str, Any]:
    """Config to ``config.json``.

    Raises:
        ModelError: Gemma 1 with GELU without approximation, which transformers does not have.
    """
    if isinstance(config, GemmaConfig):
        if config.activation == "gelu":
            raise ModelError(
                "export to Hugging Face: activation", found="gelu", expected="gelu_tanh or another"
            )
        name = {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}
        bias = {"attention_bias": config.attention_bias}
        return name | write_fields(config) | hf_rope(config.rope) | bias
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
        **hf_ropes_by_reach(config.rope, config.local_rope),
    }


def _whole(value: float) -> float | int:
    """As an integer, which transformers insists on."""
    if value != int(value):
        raise ModelError(
            "export to Hugging Face: query_scale", found=value, expected="a whole number"
        )
    return int(value)


def hf_names(config: GemmaConfig | Gemma2Config | Gemma3Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    norms = None if isinstance(config, GemmaConfig) else NORMS
    return decoder_names(config.decoder(), norms)
