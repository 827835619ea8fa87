"""Cases of Granite."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "attention_multiplier": 0.3, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "embeddings": {"embedding_multiplier": 3.0},
    "residuals": {"residual_multiplier": 0.22},
    "logits": {"logits_scaling": 0.5},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "many-switches": {
        "attention_multiplier": 0.125,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
}

TABLE = Table("GraniteForCausalLM", OWN, CASES)
