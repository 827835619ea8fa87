"""The Qwen family with mixtures of experts: Qwen 1.5 and 2, and Qwen 3."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.qwen_moe import gguf, hf
from ziggurat.models.families.qwen_moe.config import Qwen2MoeConfig, Qwen3MoeConfig

FAMILIES.add(
    "qwen2_moe",
    Family(
        name="qwen2_moe",
        config_class=Qwen2MoeConfig,
        architectures=("Qwen2MoeForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)
FAMILIES.add(
    "qwen3_moe",
    Family(
        name="qwen3_moe",
        config_class=Qwen3MoeConfig,
        architectures=("Qwen3MoeForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        from_gguf=gguf.from_gguf,
        to_gguf=gguf.to_gguf,
        gguf_names=gguf.gguf_names,
        gguf_architectures=(gguf.NAME,),
    ),
)

__all__ = ["Qwen2MoeConfig", "Qwen3MoeConfig"]
