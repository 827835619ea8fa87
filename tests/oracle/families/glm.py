"""Cases of GLM-4."""

from typing import Any

from tests.oracle.families.llama import BASE, YARN
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
NEWER: dict[str, Any] = {"architecture": "Glm4ForCausalLM"}
CASES: dict[str, dict[str, Any]] = {
    "glm": {},
    "glm-no-bias": {"attention_bias": False},
    "glm-whole": {"partial_rotary_factor": 1.0},
    "glm-quarter": {"partial_rotary_factor": 0.25, "head_dim": 16, "tie_word_embeddings": True},
    "glm-yarn": {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}},
    "glm4": NEWER,
    "glm4-no-bias": NEWER | {"attention_bias": False, "rms_norm_eps": 1e-2},
}

TABLE = Table("GlmForCausalLM", OWN, CASES)
