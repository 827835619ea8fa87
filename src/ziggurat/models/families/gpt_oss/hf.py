"""GPT-OSS in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope_parameters, read_rope
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.decoder_fields import (
    read_fields,
    read_pattern,
    write_fields,
    write_pattern,
)
from ziggurat.models.families.gpt_oss.config import GptOssConfig


def from_hf(values: Mapping[str, Any]) -> GptOssConfig:
    """``config.json`` of ``GptOssForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    # the experts' activation is fixed: transformers does not read hidden_act
    hf = HFConfig({**values, "hidden_act": "silu"})
    settings = read_fields(hf)
    layers = hf.whole("num_hidden_layers")
    types = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    chosen = hf.get("num_experts_per_tok")
    settings |= {
        "rope": read_rope(hf, settings["max_sequence_length"]),
        "n_experts": hf.get("num_local_experts"),
        "experts_per_token": chosen,
        "gate_alpha": hf.get("swiglu_alpha"),
        "gate_limit": hf.get("swiglu_limit"),
        "window": hf.get("sliding_window", 128),
        "pattern": read_pattern(hf, layers, types),
        "attention_bias": hf.get("attention_bias"),
    }
    if "local" in settings["pattern"] and hf.get("sliding_window") is None:
        raise ModelError("config.json: sliding_window", found="null", expected="a number of tokens")
    hf.refuse_unless("experts_per_token", (chosen,), "it says the same as num_experts_per_tok")
    hf.finish()
    return checked(GptOssConfig, settings, "config.json")


def to_hf(config: GptOssConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        **write_fields(config),
        "rope_parameters": hf_rope_parameters(config.rope),  # without it all is YaRN
        "sliding_window": config.window,
        "layer_types": write_pattern(config.pattern, config.n_layers),
        "attention_bias": config.attention_bias,
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.experts_per_token,
        "swiglu_alpha": config.gate_alpha,
        "swiglu_limit": config.gate_limit,
    }


def hf_names(config: GptOssConfig) -> list[WeightName]:
    """Weight names in safetensors files, whose experts are fused, gate and up in turn."""
    d = config.decoder()
    names, layer = block_names.ends(d), block_names.LAYER
    attention = config.attention(bias=config.attention_bias, out_bias=config.attention_bias)
    for stack, layers in block_names.stacked_layers(d).items():
        names += block_names.scales(stack, block_names.PRE_NORMS, layers)
        names += block_names.grouped_attention(stack, attention, layers)
        there = f"{layer}self_attn.sinks"
        names.append(WeightName(f"{stack}.attention.sinks", there, layers=layers))
        router = {"mlp.router": "mlp.router"}
        names += block_names.projections(stack, router, layers, biases=["mlp.router"])
        for part, fused, entries in (
            ("gate", "gate_up_proj", AxisSlice(-1, slice(0, None, 2))),
            ("up", "gate_up_proj", AxisSlice(-1, slice(1, None, 2))),
            ("down", "down_proj", None),
        ):
            here, there = f"{stack}.mlp.experts.{part}", f"{layer}mlp.experts.{fused}"
            names += [
                WeightName(f"{here}.kernel", there, layers=layers, part=entries),
                WeightName(f"{here}.bias", f"{there}_bias", layers=layers, part=entries),
            ]
    return names
