"""Every family that a run file can name, tiny."""

import dataclasses
import typing

from ziggurat.core import config
from ziggurat.train.config import ModelNode, PretrainedModel

ROWS, TOKENS, VOCAB = 16, 64, 48
SIZES = {
    "vocab_size": VOCAB, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_ff": 32,
    "head_dim": 8, "n_experts": 4, "experts_per_token": 2, "max_sequence_length": TOKENS,
    "d_ff_expert": 16, "latent": 8, "plain_dim": 8, "rotary_dim": 4, "value_dim": 8,
    "d_ff_shared": 16, "delta_key_heads": 2, "delta_value_heads": 2, "delta_key_dim": 4,
    "delta_value_dim": 4, "mamba_head_dim": 8, "mamba_state_dim": 4, "dense_layers": 1,
    "tie_embeddings": False, "image_size": 8, "channels": 1, "classes": 3, "norm_affine": True,
}  # fmt: skip

OWN = {
    "cohere2": {"window": 16},
    "gemma4": {
        "window": 16,
        "pattern": ("local", "global"),
        "global_head_dim": 12,
        "sparse": True,
        "n_global_kv_heads": 1,
        "shared_key_value": True,
    },
    "olmo3": {"window": 16},
    "granite_hybrid": {"attention_layers": (1,)},
    "lfm2": {"attention_layers": (1,)},
    "lfm2_moe": {"attention_layers": (1,)},
}
"""Fields of some families that have no size of all."""
WITHOUT_DENSE_LAYERS = ("minimax_m2", "olmoe", "qwen3_5_moe", "solar_open")


def families() -> dict[str, typing.Any]:
    """Every config class that a run file can name, by kind, with small sizes."""
    classes = config.variants(ModelNode)
    made = {}
    for cls in classes:
        if cls is not PretrainedModel:
            names = {field.name for field in dataclasses.fields(cls)}
            given = {k: v for k, v in SIZES.items() if k in names}
            if isinstance(getattr(cls, "dense_layers", 0), tuple):
                given.pop("dense_layers", None)  # numbers of layers, and by default none
            if cls.kind in WITHOUT_DENSE_LAYERS:
                given.pop("d_ff")
            made[cls.kind] = cls(**given | OWN.get(cls.kind, {}))
    return made
