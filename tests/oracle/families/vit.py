"""Cases of ViT."""

from typing import Any

from tests.oracle.families.table import Table

BASE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "initializer_range": 0.2,
    "intermediate_size": 80,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "switches": {
        "qkv_bias": False,
        "layer_norm_eps": 1e-2,
        "hidden_act": "gelu_new",
        "pooler_output_size": 20,
        "pooler_act": "relu",
    },
    "another-size": {"image": (20, 16)},
    "oblong": {"image_size": [12, 8], "image": (12, 8)},
    "classifier": {"architecture": "ViTForImageClassification", "num_labels": 3},
}

TABLE = Table("ViTModel", BASE, CASES, encoder=True, texts=False, image=(12, 12))
