"""The DeepSeek family: V3 and R1."""

from ziggurat.models.families.deepseek import hf
from ziggurat.models.families.deepseek.config import DeepseekV3Config
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "deepseek_v3",
    Family(
        name="deepseek_v3",
        config_class=DeepseekV3Config,
        architectures=("DeepseekV3ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        ignored=hf.ignored,
    ),
)

__all__ = ["DeepseekV3Config"]
