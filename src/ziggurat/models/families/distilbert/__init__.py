"""The DistilBERT family."""

from ziggurat.models.families.distilbert import hf
from ziggurat.models.families.distilbert.config import DistilBertConfig
from ziggurat.models.families.encoder_fields import TEXT_TASKS, left_out
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "distilbert",
    Family(
        name="distilbert",
        config_class=DistilBertConfig,
        architectures=("DistilBertModel",),
        tasks=TEXT_TASKS,
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        as_found=hf.as_found,
        copies=hf.COPIES,
        ignored=lambda config, name: left_out(config, name, "vocab_", pooler=None),
        base="distilbert.",
        buffers=("embeddings.position_ids",),
    ),
)

__all__ = ["DistilBertConfig"]
