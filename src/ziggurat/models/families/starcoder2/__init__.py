"""The StarCoder2 family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.starcoder2 import hf
from ziggurat.models.families.starcoder2.config import Starcoder2Config

FAMILIES.add(
    "starcoder2",
    Family(
        name="starcoder2",
        config_class=Starcoder2Config,
        architectures=("Starcoder2ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["Starcoder2Config"]
