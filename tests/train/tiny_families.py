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
    "tie_embeddings": False, "image_size": 8, "channels": 1, "classes": 3, "norm_affine": True,
}  # fmt: skip


def families() -> dict[str, typing.Any]:
    """Every config class that a run file can name, by kind, with small sizes."""
    classes = config.variants(ModelNode)
    made = {}
    for cls in classes:
        if cls is not PretrainedModel:
            names = {field.name for field in dataclasses.fields(cls)}
            made[cls.kind] = cls(**{k: v for k, v in SIZES.items() if k in names})
    return made
