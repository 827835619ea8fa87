"""Cases of OLMo 2 and OLMo 3."""

from typing import Any

from tests.oracle.families.llama import BASE, YARN
from tests.oracle.families.table import Table

THIRD: dict[str, Any] = {
    "architecture": "Olmo3ForCausalLM",
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "sliding_window": 7,
}
SCALED = {
    "full_attention": YARN,
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
CASES: dict[str, dict[str, Any]] = {
    "olmo2": {},
    "olmo2-gqa": {"num_key_value_heads": 3},
    "olmo2-bias": {"attention_bias": True},
    "olmo2-yarn": {"rope_parameters": YARN},
    "olmo2-many-switches": {
        "num_key_value_heads": 2,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "hidden_act": "gelu",
        "rms_norm_eps": 1e-2,
    },
    "olmo3": THIRD,
    "olmo3-yarn-of-global": THIRD | {"rope_parameters": SCALED},
    "olmo3-pattern": THIRD
    | {"layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"]},
    "olmo3-all-global": THIRD | {"layer_types": ["full_attention"] * 5},
    "olmo3-bias": THIRD | {"attention_bias": True, "num_key_value_heads": 1},
}

TABLE = Table("Olmo2ForCausalLM", BASE | {"pad_token_id": 0}, CASES)
