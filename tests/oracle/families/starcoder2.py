"""Cases of StarCoder2."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 7},
    "no-bias": {"use_bias": False},
    "untied": {"tie_word_embeddings": False, "norm_epsilon": 1e-2, "hidden_act": "relu"},
}

TABLE = Table("Starcoder2ForCausalLM", OWN, CASES)
