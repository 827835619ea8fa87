"""The OPT family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.opt import hf
from ziggurat.models.families.opt.config import OptConfig

FAMILIES.add(
    "opt",
    Family(
        name="opt",
        config_class=OptConfig,
        architectures=("OPTForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["OptConfig"]
