"""The text models of Gemma 4 (31B, 26B-A4B, and E2B and E4B)."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.gemma4 import hf
from ziggurat.models.families.gemma4.config import Gemma4Config

FAMILIES.add(
    "gemma4",
    Family(
        name="gemma4",
        config_class=Gemma4Config,
        architectures=("Gemma4ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        ignored=hf.ignored,
    ),
)

__all__ = ["Gemma4Config"]
