"""The MPNet family."""

from ziggurat.models.families.encoder_fields import TEXT_TASKS, left_out
from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.mpnet import hf
from ziggurat.models.families.mpnet.config import MPNetConfig

FAMILIES.add(
    "mpnet",
    Family(
        name="mpnet",
        config_class=MPNetConfig,
        architectures=("MPNetModel",),
        tasks=TEXT_TASKS,
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        as_found=hf.as_found,
        copies=hf.COPIES,
        ignored=lambda config, name: left_out(config, name, "lm_head."),
        base="mpnet.",
        buffers=("embeddings.position_ids",),
    ),
)

__all__ = ["MPNetConfig"]
