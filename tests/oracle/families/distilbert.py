"""Cases of DistilBERT."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "dim": 48,
    "hidden_dim": 80,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"activation": "relu"},
    "masked-lm": {"architecture": "DistilBertForMaskedLM"},
    "sequence": {"architecture": "DistilBertForSequenceClassification", "num_labels": 3},
    "cross-encoder": {"architecture": "DistilBertForSequenceClassification", "num_labels": 1},
    "token": {"architecture": "DistilBertForTokenClassification", "id2label": {0: "O", 1: "B"}},
}

TABLE = Table("DistilBertModel", BASE, CASES, encoder=True, token_types=False)
