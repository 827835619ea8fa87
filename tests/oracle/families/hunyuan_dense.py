"""Cases of Hunyuan (dense)."""

from typing import Any

from tests.oracle.families.llama import BASE, YARN
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "head_dim": 10, "pad_token_id": 0}
ALPHA = {"rope_type": "dynamic", "factor": 1.0, "alpha": 20.0, "rope_theta": 1e4}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"rope_parameters": ALPHA},
    "bias": {"attention_bias": True, "tie_word_embeddings": True},
    "yarn": {"rope_parameters": YARN},
}

TABLE = Table("HunYuanDenseV1ForCausalLM", OWN, CASES)
