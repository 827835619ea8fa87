"""Qwen 3 with mixtures of experts in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models import block_names
from ziggurat.models.decoder_fields import read_fields, write_fields
from ziggurat.models.hf_config import HFConfig, checked, hf_rope, rope
from ziggurat.models.qwen_moe.config import Qwen3MoeConfig
from ziggurat.models.weight_names import WeightName
from ziggurat.nn.attention import GroupedAttentionConfig

DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
TRAINING = ("router_aux_loss_coef", "output_router_logits")
"""Keys of the loss, which a run file sets here."""


def from_hf(values: Mapping[str, Any]) -> Qwen3MoeConfig:
    """``config.json`` of ``Qwen3MoeForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, DEFAULTS)
    slides = hf.get("use_sliding_window", False)
    window = hf.get("sliding_window", 4096 if "sliding_window" not in values else None)
    if slides:  # transformers lets all layers slide, whatever this key says
        hf.refuse_unless("max_window_layers", (0,), "layers that do not slide")
    hf.get("max_window_layers")
    settings |= {
        "rope": rope(hf, settings["max_sequence_length"]),
        "n_experts": hf.get("num_local_experts", hf.get("num_experts", 128)),
        "experts_per_token": hf.get("num_experts_per_tok", 8),
        "d_ff_expert": hf.get("moe_intermediate_size", 768),
        "normalise_weights": hf.get("norm_topk_prob", False),
        "sparse_every": hf.get("decoder_sparse_step", 1),
        "dense_layers": hf.get("mlp_only_layers", []),
        "window": window if slides else None,
        "attention_bias": hf.get("attention_bias", False),
    }
    for key in TRAINING:
        hf.get(key)
    hf.finish()
    return checked(Qwen3MoeConfig, settings, "config.json")


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
        assert isinstance(block.attention, GroupedAttentionConfig)
        names += block_names.scales(stack, block_names.PRE_NORMS, layers)
        names += block_names.grouped_attention(stack, block.attention, layers)
        if config.is_sparse(layers[0]):
            names += block_names.projections(stack, {"mlp.router": "mlp.gate"}, layers)
            names += block_names.experts(stack, layers, config.n_experts, "mlp.experts")
        else:
            names += block_names.gated_mlp(stack, layers)
    return names
