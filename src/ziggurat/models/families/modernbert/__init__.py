"""The ModernBERT family."""

from ziggurat.models.families.encoder_fields import TEXT_TASKS, left_out
from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.modernbert import hf
from ziggurat.models.families.modernbert.config import ModernBertConfig

FAMILIES.add(
    "modernbert",
    Family(
        name="modernbert",
        config_class=ModernBertConfig,
        architectures=("ModernBertModel",),
        tasks=TEXT_TASKS,
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        as_found=hf.as_found,
        copies=hf.COPIES,
        ignored=lambda config, name: left_out(config, name, "head.", "decoder.", pooler=None),
        base="model.",
    ),
)

__all__ = ["ModernBertConfig"]
