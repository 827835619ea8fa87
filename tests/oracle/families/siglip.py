"""Cases of SigLIP."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}
BASE: dict[str, Any] = {
    "text_config": TEXT | {"projection_size": 32, "max_position_embeddings": 24},
    "vision_config": VISION,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "switches": {
        "text_config": TEXT
        | {
            "projection_size": 32,
            "max_position_embeddings": 24,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-2,
        },
        "vision_config": VISION | {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
    },
}

TABLE = Table(
    "SiglipModel",
    BASE,
    CASES,
    encoder=True,
    token_types=False,
    image=(12, 12),
    masked=False,
    scale=0.2,
)
