"""Cases of Qwen 2 and Qwen 3."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
THIRD = {"architecture": "Qwen3ForCausalLM", "head_dim": 10}
WINDOW = {"use_sliding_window": True, "sliding_window": 7}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CASES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2-tied-window-of-upper-layers": WINDOW
    | {"max_window_layers": 1, "tie_word_embeddings": True, "rms_norm_eps": 1e-2},
    "qwen2-layer-types": WINDOW
    | {
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "hidden_act": "gelu",
    },
    "qwen2-yarn": {"rope_parameters": YARN | {"rope_theta": 1e6}, "num_key_value_heads": 6},
    "qwen3": THIRD,
    "qwen3-tied-biases": THIRD | {"attention_bias": True, "tie_word_embeddings": True},
    "qwen3-window-yarn": THIRD
    | WINDOW
    | {
        "max_window_layers": 2,
        "rope_parameters": YARN | {"rope_theta": 1e6},
        "hidden_act": "quick_gelu",
    },
}

TABLE = Table("Qwen2ForCausalLM", BASE, CASES)
