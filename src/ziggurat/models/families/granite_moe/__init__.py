"""The Granite family with mixtures of experts."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.granite_moe import hf
from ziggurat.models.families.granite_moe.config import GraniteMoeConfig

FAMILIES.add(
    "granitemoe",
    Family(
        name="granitemoe",
        config_class=GraniteMoeConfig,
        architectures=("GraniteMoeForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["GraniteMoeConfig"]
