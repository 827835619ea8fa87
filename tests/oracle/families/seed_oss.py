"""Cases of Seed-OSS."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "head_dim": 10, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"attention_bias": False},
    "out-bias": {"attention_out_bias": True},
    "mlp-bias": {"mlp_bias": True, "tie_word_embeddings": True},
}

TABLE = Table("SeedOssForCausalLM", OWN, CASES)
