"""Cases of CLIP."""

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
    "text_config": TEXT | {"eos_token_id": 7},
    "vision_config": VISION,
    "projection_dim": 24,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "old-end-id": {
        "text_config": TEXT | {"eos_token_id": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-2}
    },
    "vision-switches": {"vision_config": VISION | {"hidden_act": "relu", "layer_norm_eps": 1e-2}},
}

TABLE = Table("CLIPModel", BASE, CASES, encoder=True, token_types=False, image=(12, 12), scale=0.2)
