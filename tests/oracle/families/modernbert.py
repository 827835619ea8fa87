"""Cases of ModernBERT."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
    "local_attention": 6,
    "pad_token_id": 0,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "norm_eps": 1e-2},
    "two-layers-act": {"num_hidden_layers": 2, "hidden_activation": "silu", "local_attention": 9},
    "one-layer": {"num_hidden_layers": 1},
    "ropes": {
        "global_attn_every_n_layers": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
        },
    },
    "masked-lm": {"architecture": "ModernBertForMaskedLM"},
    "masked-lm-biases": {
        "architecture": "ModernBertForMaskedLM",
        "decoder_bias": False,
        "classifier_bias": True,
        "norm_bias": True,
        "classifier_activation": "relu",
    },
    "sequence": {"architecture": "ModernBertForSequenceClassification", "num_labels": 3},
    "cross-encoder-mean": {
        "architecture": "ModernBertForSequenceClassification",
        "num_labels": 1,
        "classifier_pooling": "mean",
    },
    "token": {"architecture": "ModernBertForTokenClassification", "num_labels": 4},
}

TABLE = Table("ModernBertModel", BASE, CASES, encoder=True, token_types=False)
