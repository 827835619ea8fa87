"""The Phi-3 family: Phi-3, Phi-3.5 and Phi-4, dense."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.phi3 import hf
from ziggurat.models.families.phi3.config import Phi3Config

FAMILIES.add(
    "phi3",
    Family(
        name="phi3",
        config_class=Phi3Config,
        architectures=("Phi3ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["Phi3Config"]
