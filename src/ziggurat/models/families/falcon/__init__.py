"""The Falcon family, with rotary positions."""

from ziggurat.models.families.falcon import hf
from ziggurat.models.families.falcon.config import FalconConfig
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "falcon",
    Family(
        name="falcon",
        config_class=FalconConfig,
        architectures=("FalconForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        base="transformer.",
    ),
)

__all__ = ["FalconConfig"]
