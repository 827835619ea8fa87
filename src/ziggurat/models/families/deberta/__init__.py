"""The DeBERTa-v2 family, of which DeBERTa-v3 is one more way of training."""

from ziggurat.models.families.deberta import hf
from ziggurat.models.families.deberta.config import DebertaV2Config
from ziggurat.models.families.encoder_fields import TEXT_TASKS
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "deberta_v2",
    Family(
        name="deberta_v2",
        config_class=DebertaV2Config,
        architectures=("DebertaV2Model",),
        tasks=TEXT_TASKS,
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        as_found=hf.as_found,
        copies=hf.COPIES,
        ignored=hf.ignored,
        base="deberta.",
        buffers=("embeddings.position_ids",),
    ),
)

__all__ = ["DebertaV2Config"]
