"""Cases of ELECTRA."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "embedding_size": 24,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "as-wide-eps-act": {"embedding_size": 48, "layer_norm_eps": 1e-2, "hidden_act": "gelu_new"},
    "discriminator": {"architecture": "ElectraForPreTraining", "hidden_act": "relu"},
    "masked-lm": {"architecture": "ElectraForMaskedLM"},
    "sequence": {"architecture": "ElectraForSequenceClassification", "num_labels": 3},
    "cross-encoder": {"architecture": "ElectraForSequenceClassification", "num_labels": 1},
    "token": {"architecture": "ElectraForTokenClassification", "id2label": {0: "O", 1: "B"}},
}

TABLE = Table("ElectraModel", BASE, CASES, encoder=True)
