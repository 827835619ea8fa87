"""The Hunyuan family with mixtures of experts."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.hunyuan_moe import hf
from ziggurat.models.families.hunyuan_moe.config import HunyuanMoeConfig

FAMILIES.add(
    "hunyuan_moe",
    Family(
        name="hunyuan_moe",
        config_class=HunyuanMoeConfig,
        architectures=("HunYuanMoEV1ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["HunyuanMoeConfig"]
