"""Cases of GPT-NeoX."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
PART = {"rope_type": "default", "rope_theta": 1e4}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequential": {"use_parallel_residual": False},
    "no-bias": {"attention_bias": False},
    "whole": {"rope_parameters": PART | {"partial_rotary_factor": 1.0}},
    "half": {"rope_parameters": PART | {"partial_rotary_factor": 0.5, "rope_theta": 300.0}},
    "tied": {"tie_word_embeddings": True, "hidden_act": "gelu_new", "layer_norm_eps": 1e-2},
    "linear": {
        "rope_parameters": PART
        | {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5}
    },
}

TABLE = Table("GPTNeoXForCausalLM", OWN, CASES)
