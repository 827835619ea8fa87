"""Cases of Nemotron."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "head-dim": {"head_dim": 12},
    "whole": {"partial_rotary_factor": 1.0},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True, "norm_eps": 1e-2, "hidden_act": "gelu"},
}

TABLE = Table("NemotronForCausalLM", OWN, CASES, norms_about=0.0)
