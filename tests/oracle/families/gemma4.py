"""Cases of Gemma 4 (text)."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "global_head_dim": 16,
    "sliding_window": 7,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "pad_token_id": 0,
}
SPARSE = {
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
}
SMALL = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 12,
    "num_kv_shared_layers": 2,
    # scores are not scaled: wide heads make them large, and rounding in float32 grows with them
    "head_dim": 6,
    "global_head_dim": 8,
}
CASES: dict[str, dict[str, Any]] = {
    "dense": {"final_logit_softcapping": 3.0},
    "shared-key-value": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "sparse": SPARSE | {"attention_k_eq_v": True, "num_global_key_value_heads": 3},
    "small": SMALL
    | {
        "vocab_size_per_layer_input": VOCABULARY,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 3.0,
    },
    "inputs-without-shared": {
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_activation": "silu",
    },
    "untied-biases-other-ropes": {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "full_attention"],
        "tie_word_embeddings": False,
        "attention_bias": True,
        "hidden_activation": "silu",
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.5,
                "factor": 2.0,
                "rope_theta": 100.0,
            },
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        },
    },
}

TABLE = Table("Gemma4ForCausalLM", BASE, CASES)
