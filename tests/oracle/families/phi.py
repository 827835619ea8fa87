"""Cases of Phi-1 and Phi-2."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "phi-2-like": {"partial_rotary_factor": 0.5, "num_attention_heads": 3, "hidden_act": "gelu"},
    "grouped-head-norm": {"num_key_value_heads": 2, "qk_layernorm": True, "layer_norm_eps": 1e-2},
    "tied-linear": {
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "linear",
            "factor": 2.0,
            "rope_theta": 500.0,
            "partial_rotary_factor": 1.0,
        },
    },
}

TABLE = Table("PhiForCausalLM", BASE, CASES)
