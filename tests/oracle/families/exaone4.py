"""Cases of EXAONE 4."""

from typing import Any

from tests.oracle.families.llama import BASE, LLAMA3
from tests.oracle.families.table import Table

OWN = {
    **BASE,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "sliding_window": 7,
    "pad_token_id": 0,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-window": {"sliding_window": None, "layer_types": ["full_attention"] * 5},
    "no-positions": {"layer_types": ["full_attention"] * 5},
    "every-other": {"sliding_window_pattern": 2, "tie_word_embeddings": True},
    "llama3": {"rope_parameters": LLAMA3},
}

TABLE = Table("Exaone4ForCausalLM", OWN, CASES)
