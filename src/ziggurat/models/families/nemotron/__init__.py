"""The Nemotron family: Nemotron-4 and Minitron, dense."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.nemotron import hf
from ziggurat.models.families.nemotron.config import NemotronConfig

FAMILIES.add(
    "nemotron",
    Family(
        name="nemotron",
        config_class=NemotronConfig,
        architectures=("NemotronForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["NemotronConfig"]
