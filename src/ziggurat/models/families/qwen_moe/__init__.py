"""Qwen 3 with mixtures of experts."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.qwen_moe import hf
from ziggurat.models.families.qwen_moe.config import Qwen3MoeConfig

FAMILIES.add(
    "qwen3_moe",
    Family(
        name="qwen3_moe",
        config_class=Qwen3MoeConfig,
        architectures=("Qwen3MoeForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["Qwen3MoeConfig"]
