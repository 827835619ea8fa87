"""Cases of Arcee."""

from typing import Any

from tests.oracle.families.llama import BASE, YARN
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "head-dim": {"head_dim": 10},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "yarn": {"rope_parameters": YARN, "tie_word_embeddings": True},
    "gelu": {"hidden_act": "gelu"},
}

TABLE = Table("ArceeForCausalLM", OWN, CASES)
