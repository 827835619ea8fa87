"""The GPT-OSS family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.gpt_oss import hf
from ziggurat.models.families.gpt_oss.config import GptOssConfig

FAMILIES.add(
    "gpt_oss",
    Family(
        name="gpt_oss",
        config_class=GptOssConfig,
        architectures=("GptOssForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["GptOssConfig"]
