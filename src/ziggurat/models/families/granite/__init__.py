"""The Granite family: Granite 3 and 4.x, dense."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.granite import hf
from ziggurat.models.families.granite.config import GraniteConfig

FAMILIES.add(
    "granite",
    Family(
        name="granite",
        config_class=GraniteConfig,
        architectures=("GraniteForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["GraniteConfig"]
