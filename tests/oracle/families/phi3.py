"""Cases of Phi-3 and Phi-4."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "pad_token_id": 0}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.0, 2.0, 5.0, 9.0],
    "rope_theta": 1e4,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 7},
    "tied": {"tie_word_embeddings": True},
    "partial": {"partial_rotary_factor": 0.5},
    "longrope-beyond": {"rope_parameters": LONG, "original_max_position_embeddings": 16},
    "longrope-within": {"rope_parameters": LONG, "original_max_position_embeddings": 32},
    "longrope-factor": {
        "rope_parameters": LONG | {"attention_factor": 1.3},
        "original_max_position_embeddings": 16,
    },
    "phi-4-mini-like": {
        "hidden_size": 96,
        "num_attention_heads": 6,
        "partial_rotary_factor": 0.75,
        "rope_parameters": LONG
        | {"short_factor": [1.0] * 6, "long_factor": [1.0, 1.1, 1.5, 3.0, 9.0, 30.0]},
        "original_max_position_embeddings": 16,
        "sliding_window": 23,
        "tie_word_embeddings": True,
    },
}

TABLE = Table("Phi3ForCausalLM", OWN, CASES)
