"""Cases of DeBERTa-v2 and v3."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "type_vocab_size": 0,
    "initializer_range": 0.2,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
OWN = {"share_att_key": False, "norm_rel_ebd": "none"}
HEAD = {"architecture": "DebertaV2ForMaskedLM"}
CASES: dict[str, dict[str, Any]] = {
    "v3": {},
    "v2-convolution": {"conv_kernel_size": 3, "conv_act": "gelu", "position_buckets": 6},
    "wide-groups": {"conv_kernel_size": 5, "conv_groups": 4, "max_relative_positions": 12},
    "own-projections": OWN,
    "c2p-no-buckets": OWN | {"pos_att_type": ["c2p"], "position_buckets": -1},
    "p2c-short": OWN
    | {"pos_att_type": ["p2c"], "position_buckets": 0, "max_relative_positions": 6},
    "not-relative": OWN | {"relative_attention": False, "position_biased_input": True},
    "narrow-types-eps": {"embedding_size": 24, "type_vocab_size": 2, "layer_norm_eps": 1e-2},
    "masked-lm": HEAD | {"legacy": False, "hidden_act": "gelu_new"},
    "masked-lm-legacy": HEAD | {"embedding_size": 24},
    "sequence": {"architecture": "DebertaV2ForSequenceClassification", "num_labels": 3},
    "cross-encoder": {
        "architecture": "DebertaV2ForSequenceClassification",
        "num_labels": 1,
        "pooler_hidden_act": "tanh",
    },
    "token": {"architecture": "DebertaV2ForTokenClassification", "id2label": {0: "O", 1: "B"}},
}

TABLE = Table("DebertaV2Model", BASE, CASES, encoder=True)
