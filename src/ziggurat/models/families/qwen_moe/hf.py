"""Qwen 3 with mixtures of experts in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    read_fields,
    read_rotary,
    same_reach,
    write_fields,
)
from ziggurat.models.families.qwen_moe.config import Qwen3MoeConfig
from ziggurat.nn.attention import GroupedAttentionConfig


def from_hf(values: Mapping[str, Any]) -> Qwen3MoeConfig:
    """``config.json`` of ``Qwen3MoeForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf)
    window, slides = hf.get("sliding_window"), hf.get("use_sliding_window")
    window = window if slides else None
    if window is not None:  # transformers lets all layers slide, whatever this key says
        hf.refuse_unless("max_window_layers", (0,), "layers that do not slide")
    hf.given("max_window_layers")
    settings |= {
        **read_rotary(hf, settings["max_sequence_length"]),
        "n_experts": hf.get("num_experts"),
        "experts_per_token": hf.get("num_experts_per_tok"),
        "d_ff_expert": hf.get("moe_intermediate_size"),
        "normalise_weights": hf.get("norm_topk_prob"),
        "sparse_every": hf.get("decoder_sparse_step"),
        "dense_layers": _existing(hf.get("mlp_only_layers", []), settings["n_layers"]),
        "window": window,
        "attention_bias": hf.get("attention_bias"),
    }
    same_reach(hf, window)
    hf.finish()
    return checked(Qwen3MoeConfig, settings, "config.json")


def _existing(layers: Any, count: int) -> Any:
    """Numbers of layers without those that a model of ``count`` layers does not have: they have no
    effect in transformers."""
    if not isinstance(layers, list):
        return layers
    return [n for n in layers if not (isinstance(n, int) and n >= count)]


def to_hf(config: Qwen3MoeConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **write_fields(config),
        **hf_rope(config.rope),
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "attention_bias": config.attention_bias,
        "num_experts": config.n_experts,
        "num_experts_per_tok": config.experts_per_token,
        "moe_intermediate_size": config.d_ff_expert,
        "norm_topk_prob": config.normalise_weights,
        "decoder_sparse_step": config.sparse_every,
        "mlp_only_layers": list(config.dense_layers),
    }


def hf_names(config: Qwen3MoeConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    names = block_names.ends(d)
    for (stack, layers), block in zip(block_names.stacked_layers(d).items(), d.stacks):
        assert isinstance(block.mixer, GroupedAttentionConfig)
        names += block_names.scales(stack, block_names.PRE_NORMS, layers)
        names += block_names.grouped_attention(stack, block.mixer, layers)
        if config.is_sparse(layers[0]):
            names += block_names.projections(stack, {"mlp.router": "mlp.gate"}, layers)
            names += block_names.experts(stack, layers, config.n_experts, "mlp.experts")
        else:
            names += block_names.gated_mlp(stack, layers)
    return names
