"""Cases of StableLM."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"use_qkv_bias": True},
    "parallel": {"use_parallel_residual": True},
    "head-norm": {"qk_layernorm": True, "partial_rotary_factor": 0.5},
    "stablelm-2-12b-like": {
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "tie_word_embeddings": True,
        "layer_norm_eps": 1e-2,
    },
}

TABLE = Table("StableLmForCausalLM", OWN, CASES)
