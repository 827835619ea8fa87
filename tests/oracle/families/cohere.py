"""Cases of Command R and Command R7B."""

from typing import Any

from tests.oracle.families.llama import BASE
from tests.oracle.families.table import Table

OWN = {**BASE, "num_key_value_heads": 2, "pad_token_id": 0, "logit_scale": 0.5}
SECOND: dict[str, Any] = {
    "architecture": "Cohere2ForCausalLM",
    "num_hidden_layers": 5,
    "sliding_window": 7,
}
CASES: dict[str, dict[str, Any]] = {
    "cohere": {},
    "cohere-untied": {"tie_word_embeddings": False},
    "cohere-bias": {"attention_bias": True},
    "cohere-head-norm": {"use_qk_norm": True},
    "cohere-logits": {"logit_scale": 1.5, "layer_norm_eps": 1e-2},
    "cohere2": SECOND,
    "cohere2-every-other": SECOND
    | {"layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"]},
    "cohere2-bias": SECOND | {"attention_bias": True, "tie_word_embeddings": False},
}

TABLE = Table("CohereForCausalLM", OWN, CASES)
