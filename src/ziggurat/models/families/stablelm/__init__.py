"""The StableLM family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.stablelm import hf
from ziggurat.models.families.stablelm.config import StableLmConfig

FAMILIES.add(
    "stablelm",
    Family(
        name="stablelm",
        config_class=StableLmConfig,
        architectures=("StableLmForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["StableLmConfig"]
