"""The Helium family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.helium import hf
from ziggurat.models.families.helium.config import HeliumConfig

FAMILIES.add(
    "helium",
    Family(
        name="helium",
        config_class=HeliumConfig,
        architectures=("HeliumForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["HeliumConfig"]
