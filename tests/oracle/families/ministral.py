"""Cases of Ministral and Ministral 3."""

from typing import Any

from tests.oracle.families.llama import BASE, YARN
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
GROWING = YARN | {"llama_4_scaling_beta": 0.4, "mscale": 1.0, "mscale_all_dim": 1.0}
THIRD: dict[str, Any] = {
    "architecture": "Ministral3ForCausalLM",
    "head_dim": 10,
    "rope_parameters": GROWING,
}
CASES: dict[str, dict[str, Any]] = {
    "ministral": {"sliding_window": 7},
    "ministral-mixed": {
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "ministral3": THIRD,
    "ministral3-window": THIRD | {"sliding_window": 7, "tie_word_embeddings": True},
    "ministral3-short": THIRD
    | {"rope_parameters": GROWING | {"original_max_position_embeddings": 4}},
    "ministral3-no-growth": THIRD | {"rope_parameters": GROWING | {"llama_4_scaling_beta": 0.0}},
}

TABLE = Table("MinistralForCausalLM", OWN, CASES)
