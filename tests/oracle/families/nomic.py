"""Cases of Nomic's encoder."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "eps-act-head": {"layer_norm_eps": 1e-2, "hidden_act": "gelu", "head_dim": 16},
    "rope": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
        }
    },
    "masked-lm": {"architecture": "NomicBertForMaskedLM"},
    "sequence": {"architecture": "NomicBertForSequenceClassification", "num_labels": 3},
    "cross-encoder": {"architecture": "NomicBertForSequenceClassification", "num_labels": 1},
    "token": {"architecture": "NomicBertForTokenClassification", "id2label": {0: "O", 1: "B"}},
}

TABLE = Table("NomicBertModel", BASE, CASES, encoder=True)
