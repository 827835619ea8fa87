"""Cases of DINOv2, with and without registers."""

from typing import Any

from tests.oracle.families.table import Table

BASE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "initializer_range": 0.2,
    "mlp_ratio": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "switches": {"qkv_bias": False, "layer_norm_eps": 1e-2, "use_mask_token": False},
    "gated": {"use_swiglu_ffn": True},
    "another-size": {"image": (20, 8)},
    "classifier": {"architecture": "Dinov2ForImageClassification", "num_labels": 3},
    "registers": {"architecture": "Dinov2WithRegistersModel", "num_register_tokens": 3},
    "registers-smaller": {"architecture": "Dinov2WithRegistersModel", "image_size": 24},
    "registers-larger": {"architecture": "Dinov2WithRegistersModel", "image": (16, 24)},
    "registers-classifier": {
        "architecture": "Dinov2WithRegistersForImageClassification",
        "num_labels": 2,
        "use_swiglu_ffn": True,
    },
}

TABLE = Table("Dinov2Model", BASE, CASES, encoder=True, texts=False, image=(12, 12))
