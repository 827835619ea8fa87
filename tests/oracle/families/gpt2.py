"""Cases of GPT-2."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
    "initializer_range": 0.2,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied-inner-eps": {"tie_word_embeddings": False, "n_inner": 80, "layer_norm_epsilon": 1e-2},
    "scaled-by-layer": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    "unscaled-upcast-tanh": {
        "scale_attn_weights": False,
        "reorder_and_upcast_attn": True,
        "activation_function": "tanh",
    },
    "relu2": {"activation_function": "relu2", "n_head": 3},
}

TABLE = Table("GPT2LMHeadModel", BASE, CASES)
