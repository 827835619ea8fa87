"""Granite 4: Mamba-2 layers with grouped attention among them, dense or with experts."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.granite_hybrid import hf
from ziggurat.models.families.granite_hybrid.config import GraniteHybridConfig

FAMILIES.add(
    "granite_hybrid",
    Family(
        name="granite_hybrid",
        config_class=GraniteHybridConfig,
        architectures=("GraniteMoeHybridForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["GraniteHybridConfig"]
