"""Cases of BERT."""

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
    "eps-tanh-types": {"layer_norm_eps": 1e-2, "hidden_act": "gelu_new", "type_vocab_size": 3},
    "masked-lm": {"architecture": "BertForMaskedLM"},
    "sequence": {"architecture": "BertForSequenceClassification", "num_labels": 3},
    "cross-encoder": {"architecture": "BertForSequenceClassification", "num_labels": 1},
    "token": {"architecture": "BertForTokenClassification", "id2label": {0: "O", 1: "B"}},
}

TABLE = Table("BertModel", BASE, CASES, encoder=True)
