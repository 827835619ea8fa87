"""The Nomic family: nomic-embed-text."""

from ziggurat.models.families.encoder_fields import TEXT_TASKS, left_out
from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.nomic import hf
from ziggurat.models.families.nomic.config import NomicConfig

FAMILIES.add(
    "nomic",
    Family(
        name="nomic",
        config_class=NomicConfig,
        architectures=("NomicBertModel",),
        tasks=TEXT_TASKS,
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        as_found=hf.as_found,
        copies=hf.COPIES,
        ignored=lambda config, name: left_out(config, name, "cls.predictions.", pooler=None),
        base="nomic_bert.",
    ),
)

__all__ = ["NomicConfig"]
