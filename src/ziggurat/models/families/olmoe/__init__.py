"""The OLMoE family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.olmoe import hf
from ziggurat.models.families.olmoe.config import OlmoeConfig

FAMILIES.add(
    "olmoe",
    Family(
        name="olmoe",
        config_class=OlmoeConfig,
        architectures=("OlmoeForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["OlmoeConfig"]
