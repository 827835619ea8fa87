"""Cases of OPT."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "init_std": 0.2,
    "pad_token_id": 1,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "opt-350m-like": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "projected-untied": {"word_embed_proj_dim": 64, "tie_word_embeddings": False},
    "without-biases-gelu": {"enable_bias": False, "activation_function": "gelu"},
    "without-final-norm": {"_remove_final_layer_norm": True, "num_attention_heads": 3},
}

TABLE = Table("OPTForCausalLM", BASE, CASES, scale=0.2)
