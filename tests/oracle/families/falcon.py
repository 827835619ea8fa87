"""Cases of Falcon."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {
    key: value
    for key, value in BASE.items()
    if key not in ("num_key_value_heads", "intermediate_size")
}
NEWER = {"new_decoder_architecture": True, "num_kv_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "newer": NEWER,
    "newer-one-norm": NEWER | {"num_ln_in_parallel_attn": 1, "bias": True},
    "sequential": {"parallel_attn": False, "multi_query": False},
    "multi-head": {"multi_query": False, "bias": True},
    "width": {"ffn_hidden_size": 80, "activation": "relu", "tie_word_embeddings": False},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
}

TABLE = Table("FalconForCausalLM", OWN, CASES)
