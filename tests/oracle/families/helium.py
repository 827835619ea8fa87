"""Cases of Helium."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True, "rms_norm_eps": 1e-2},
}

TABLE = Table("HeliumForCausalLM", OWN, CASES)
