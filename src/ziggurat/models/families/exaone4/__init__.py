"""The EXAONE 4 family."""

from ziggurat.models.families.exaone4 import hf
from ziggurat.models.families.exaone4.config import Exaone4Config
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "exaone4",
    Family(
        name="exaone4",
        config_class=Exaone4Config,
        architectures=("Exaone4ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["Exaone4Config"]
