"""DeepSeek-V2 and V3 in Hugging Face's ``config.json`` and safetensors."""

import re
from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.rotary_order import pairs_to_halves, reordered
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import read_rotary
from ziggurat.models.families.deepseek.config import (
    DeepseekFields,
    DeepseekV2Config,
    DeepseekV3Config,
)
from ziggurat.models.families.mixture_fields import feed_forward_names
from ziggurat.nn.rope import YarnScaling

DIMENSIONS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "latent": "kv_lora_rank",
    "plain_dim": "qk_nope_head_dim",
    "rotary_dim": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
    "d_ff": "intermediate_size",
    "d_ff_expert": "moe_intermediate_size",
    "n_experts": "n_routed_experts",
    "experts_per_token": "num_experts_per_tok",
}
"""Keys that must be there, ours and theirs."""
SWITCHES = {
    "n_dense_layers": "first_k_dense_replace",
    "n_shared_experts": "n_shared_experts",
    "routed_scale": "routed_scaling_factor",
    "max_sequence_length": "max_position_embeddings",
    "attention_bias": "attention_bias",
    "tie_embeddings": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}
"""Keys that may be absent, ours and theirs."""
GROUPS = {"n_groups": "n_group", "groups_per_token": "topk_group"}
"""Groups of experts, ours and theirs."""
V3_SWITCHES = GROUPS | {
    "normalise_weights": "norm_topk_prob",
    "interleaved_rope": "rope_interleave",
}
"""Keys that may be absent, of V3 alone."""


def from_hf(values: Mapping[str, Any]) -> DeepseekV2Config | DeepseekV3Config:
    """``config.json`` of ``DeepseekV2ForCausalLM`` or ``DeepseekV3ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = {ours: hf.need(theirs) for ours, theirs in DIMENSIONS.items()}
    settings |= {ours: hf.get(theirs) for ours, theirs in SWITCHES.items()}
    settings |= {
        "query_latent": hf.get("q_lora_rank"),
        "activation": activation(hf),
        **read_rotary(hf, settings["max_sequence_length"]),
    }
    if not isinstance(settings["rope"].scaling, YarnScaling):  # else it scales the scores too
        for key in ("rope_scaling", "rope_parameters"):
            if (hf.given(key) or {}).get("mscale_all_dim"):
                raise ModelError(
                    f"config.json: {key}.mscale_all_dim", found="a value", expected="type yarn"
                )
    hf.refuse_unless("num_key_value_heads", (settings["n_heads"],), "each head has its own keys")
    hf.refuse_unless("qk_head_dim", (hf.whole("qk_nope_head_dim") + hf.whole("qk_rope_head_dim"),))
    hf.refuse_unless("moe_layer_freq", (1,))
    second = hf.model_type == "deepseek_v2"
    if second:
        settings |= _second_router(hf)
        hf.given("head_dim")  # transformers takes qk_rope_head_dim for it
    else:
        hf.refuse_unless("head_dim", (settings["rotary_dim"],))
        settings |= {ours: hf.get(theirs) for ours, theirs in V3_SWITCHES.items()}
        hf.refuse_unless("topk_method", ("noaux_tc",))
        hf.refuse_unless("scoring_func", ("sigmoid",))
    hf.finish()
    return checked(DeepseekV2Config if second else DeepseekV3Config, settings, "config.json")


def _second_router(hf: HFConfig) -> dict[str, Any]:
    """Groups of DeepSeek-V2's experts, which count for one of its two ways of choosing."""
    hf.refuse_unless("scoring_func", ("softmax",))
    hf.refuse_unless("norm_topk_prob", (False,), "transformers leaves such weights as they are")
    method = hf.get("topk_method")
    hf.refuse_unless("topk_method", ("greedy", "group_limited_greedy"))
    groups = {ours: hf.get(theirs) for ours, theirs in GROUPS.items()}
    return groups if method == "group_limited_greedy" else {}


def to_hf(config: DeepseekV2Config | DeepseekV3Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    second = isinstance(config, DeepseekV2Config)
    method = "group_limited_greedy" if config.n_groups > 1 else "greedy"
    return {
        "architectures": ["DeepseekV2ForCausalLM" if second else "DeepseekV3ForCausalLM"],
        "model_type": config.kind,
        **{theirs: getattr(config, ours) for ours, theirs in DIMENSIONS.items()},
        **{theirs: getattr(config, ours) for ours, theirs in SWITCHES.items()},
        **{
            theirs: getattr(config, ours)
            for ours, theirs in (GROUPS if second else V3_SWITCHES).items()
        },
        **({"topk_method": method} if second else {}),
        **hf_rope(config.rope),
        "q_lora_rank": config.query_latent,
        "num_key_value_heads": config.n_heads,
        "hidden_act": hf_activation(config.activation),
        "attention_dropout": 0.0,
        "num_nextn_predict_layers": 0,
    }


def ignored(config: DeepseekFields, name: str) -> bool:
    """Whether a tensor belongs to layers behind the last, which predict further tokens."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return layer is not None and int(layer[1]) >= config.n_layers


def hf_names(config: DeepseekV2Config | DeepseekV3Config) -> list[WeightName]:
    """Weight names in safetensors files."""
    d = config.decoder()
    names = block_names.ends(d)
    for (stack, layers), block in zip(block_names.stacked_layers(d).items(), d.stacks):
        names += block_names.scales(stack, block_names.PRE_NORMS, layers)
        names += _attention(config, stack, layers)
        names += feed_forward_names(stack, block.mlp, layers, shared="shared_experts")
    return names


def _attention(
    config: DeepseekV2Config | DeepseekV3Config, stack: str, layers: block_names.Layers
) -> list[WeightName]:
    compressed, latent = config.query_latent is not None, "self_attn.kv_a_proj_with_mqa"
    query = "self_attn.q_b_proj" if compressed else "self_attn.q_proj"
    down = {"attention.query_down": "self_attn.q_a_proj"} if compressed else {}
    norms = {"attention.latent_norm": "self_attn.kv_a_layernorm"}
    if compressed:
        norms["attention.query_norm"] = "self_attn.q_a_layernorm"
    table = down | {
        "attention.query": query,
        "attention.latent": latent,
        "attention.expand": "self_attn.kv_b_proj",
        "attention.out": "self_attn.o_proj",
    }
    biases = [*down, "attention.latent", "attention.out"] if config.attention_bias else []
    names = block_names.projections(stack, table, layers, biases)
    if config.interleaved_rope:
        rotary = config.rotary_dim
        orders = {
            query: pairs_to_halves(config.n_heads, config.plain_dim, rotary),
            latent: pairs_to_halves(1, config.latent, rotary),
        }
        names = [reordered(name, orders) for name in names]
    return block_names.scales(stack, norms, layers) + names
