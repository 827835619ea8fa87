"""Cases of SmolLM3."""

from typing import Any

from tests.oracle.families.llama import BASE, LLAMA3, YARN
from tests.oracle.families.table import Table

OWN = {**BASE, "num_hidden_layers": 5, "num_key_value_heads": 2, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "interval": {"no_rope_layer_interval": 2},
    "list": {"no_rope_layers": [0, 1, 1, 0, 1]},
    "all-rotate": {"no_rope_layers": [1] * 5},
    "window": {"use_sliding_window": True, "sliding_window": 7},
    "window-of-rotating": {
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
    },
    "biases": {"attention_bias": True, "mlp_bias": True},
    "yarn": {"rope_parameters": YARN},
    "many-switches": {
        "no_rope_layer_interval": 3,
        "use_sliding_window": True,
        "sliding_window": 7,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "hidden_act": "gelu",
        "rope_parameters": LLAMA3,
    },
}

TABLE = Table("SmolLM3ForCausalLM", OWN, CASES)
