"""Cases of MPNet."""

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
    "eps-act-buckets": {
        "layer_norm_eps": 1e-2,
        "hidden_act": "relu",
        "relative_attention_num_buckets": 40,
    },
    "masked-lm": {"architecture": "MPNetForMaskedLM"},
    "sequence": {"architecture": "MPNetForSequenceClassification", "num_labels": 3},
    "cross-encoder": {"architecture": "MPNetForSequenceClassification", "num_labels": 1},
    "token": {"architecture": "MPNetForTokenClassification", "id2label": {0: "O", 1: "B"}},
}

TABLE = Table("MPNetModel", BASE, CASES, encoder=True, token_types=False)
