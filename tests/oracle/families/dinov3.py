"""Cases of DINOv3's vision transformers."""

from typing import Any

from tests.oracle.families.table import Table

BASE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "initializer_range": 0.2,
    "num_register_tokens": 4,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated-base": {"use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 30.0},
    "biases": {"key_bias": True, "proj_bias": False, "mlp_bias": False, "layer_norm_eps": 1e-2},
    "without-biases": {"query_bias": False, "value_bias": False, "num_register_tokens": 1},
    "another-size": {"image": (20, 8)},
    "patches-not-square": {"patch_size": [4, 2], "image": (16, 12)},
}

TABLE = Table("DINOv3ViTModel", BASE, CASES, encoder=True, texts=False, image=(12, 12))
