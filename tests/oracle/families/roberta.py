"""Cases of RoBERTa and XLM-RoBERTa."""

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
    "padding-eps-act": {"layer_norm_eps": 1e-2, "hidden_act": "gelu_new", "pad_token_id": 5},
    "xlm-roberta": {"architecture": "XLMRobertaModel"},
    "camembert": {"architecture": "CamembertModel"},
    "xlm-cross-encoder": {"architecture": "XLMRobertaForSequenceClassification", "num_labels": 1},
    "masked-lm": {"architecture": "RobertaForMaskedLM"},
    "sequence": {"architecture": "RobertaForSequenceClassification", "num_labels": 3},
    "cross-encoder": {"architecture": "RobertaForSequenceClassification", "num_labels": 1},
    "token": {"architecture": "RobertaForTokenClassification", "id2label": {0: "O", 1: "B"}},
}

TABLE = Table("RobertaModel", BASE, CASES, encoder=True)
