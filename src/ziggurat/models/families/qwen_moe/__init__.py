"""The Qwen family with mixtures of experts: Qwen 1.5 and 2, and Qwen 3."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.qwen_moe import hf
from ziggurat.models.families.qwen_moe.config import Qwen2MoeConfig, Qwen3MoeConfig

for _config_class, _number in ((Qwen2MoeConfig, 2), (Qwen3MoeConfig, 3)):
    FAMILIES.add(
        f"qwen{_number}_moe",
        Family(
            name=f"qwen{_number}_moe",
            config_class=_config_class,
            architectures=(f"Qwen{_number}MoeForCausalLM",),
            from_hf=hf.from_hf,
            to_hf=hf.to_hf,
            hf_names=hf.hf_names,
        ),
    )

__all__ = ["Qwen2MoeConfig", "Qwen3MoeConfig"]
