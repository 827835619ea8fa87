"""The Hunyuan family, dense."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.hunyuan_dense import hf
from ziggurat.models.families.hunyuan_dense.config import HunyuanDenseConfig

FAMILIES.add(
    "hunyuan_dense",
    Family(
        name="hunyuan_dense",
        config_class=HunyuanDenseConfig,
        architectures=("HunYuanDenseV1ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["HunyuanDenseConfig"]
