"""The SmolLM3 family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.smollm3 import hf
from ziggurat.models.families.smollm3.config import SmolLM3Config

FAMILIES.add(
    "smollm3",
    Family(
        name="smollm3",
        config_class=SmolLM3Config,
        architectures=("SmolLM3ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["SmolLM3Config"]
