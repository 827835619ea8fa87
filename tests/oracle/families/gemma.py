"""Cases of Gemma 2 and Gemma 3 (text)."""

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
    "query_pre_attn_scalar": 12,
    "sliding_window": 7,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
THIRD: dict[str, Any] = {"architecture": "Gemma3ForCausalLM"}
CASES: dict[str, dict[str, Any]] = {
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma2-untied-biases-uncapped": {
        "attention_bias": True,
        "tie_word_embeddings": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "silu",
    },
    "gemma2-all-global-linear": {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    },
    "gemma3": THIRD | {"num_hidden_layers": 8},
    "gemma3-linear-of-global": THIRD
    | {
        "num_hidden_layers": 4,
        "layer_types": [
            "sliding_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
        ],
        "final_logit_softcapping": 3.0,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "gemma3-untied-biases-local-scaling": THIRD
    | {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "sliding_attention"],
        "attention_bias": True,
        "tie_word_embeddings": False,
        "hidden_activation": "gelu",
        "rms_norm_eps": 1e-2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e5},
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        },
    },
}

TABLE = Table("Gemma2ForCausalLM", BASE, CASES, norms_about=0.0)
