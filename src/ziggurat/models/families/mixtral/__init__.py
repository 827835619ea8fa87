"""The Mixtral family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.mixtral import hf
from ziggurat.models.families.mixtral.config import MixtralConfig

FAMILIES.add(
    "mixtral",
    Family(
        name="mixtral",
        config_class=MixtralConfig,
        architectures=("MixtralForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["MixtralConfig"]
