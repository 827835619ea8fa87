"""The Phi family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.phi import hf
from ziggurat.models.families.phi.config import PhiConfig

FAMILIES.add(
    "phi",
    Family(
        name="phi",
        config_class=PhiConfig,
        architectures=("PhiForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["PhiConfig"]
