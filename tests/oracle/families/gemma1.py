"""Cases of Gemma 1."""

from typing import Any

from tests.oracle.families.llama import BASE, DYNAMIC
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "head_dim": 10, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"attention_bias": True, "tie_word_embeddings": False},
    "old-gelu": {"hidden_act": "gelu", "num_key_value_heads": 1},
    "silu": {"hidden_act": "silu", "rms_norm_eps": 1e-2},
    "dynamic": {"max_position_embeddings": 16, "rope_parameters": DYNAMIC},
}

TABLE = Table("GemmaForCausalLM", OWN, CASES, norms_about=0.0)
