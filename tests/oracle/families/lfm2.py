"""Cases of LFM2, dense and with mixtures of experts."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

MIXTURE: dict[str, Any] = {
    "architecture": "Lfm2MoeForCausalLM",
    "moe_intermediate_size": 16,
    "num_dense_layers": 1,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "lfm2": {"block_multiple_of": 8},
    "lfm2-untied-biases": {
        "tie_word_embeddings": False,
        "conv_bias": True,
        "conv_L_cache": 4,
        "norm_eps": 1e-2,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "conv", "conv"],
        "block_auto_adjust_ff_dim": False,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    },
    "lfm2-width": {"block_ffn_dim_multiplier": 1.3, "block_multiple_of": 16, "head_dim": 10},
    "lfm2_moe": MIXTURE,
    "lfm2_moe-many-switches": MIXTURE
    | {
        "num_dense_layers": 0,
        "use_expert_bias": False,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
        "conv_bias": True,
        "tie_word_embeddings": False,
    },
}
TABLE = Table(
    architecture="Lfm2ForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 120,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
        "max_position_embeddings": 64,
        "initializer_range": 0.25,
        "pad_token_id": 0,
    },
    cases=CASES,
)
