"""The Arcee family (AFM)."""

from ziggurat.models.families.arcee import hf
from ziggurat.models.families.arcee.config import ArceeConfig
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "arcee",
    Family(
        name="arcee",
        config_class=ArceeConfig,
        architectures=("ArceeForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["ArceeConfig"]
