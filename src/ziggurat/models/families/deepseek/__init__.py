"""The DeepSeek family: V2, V3 and R1."""

from ziggurat.models.families.deepseek import hf
from ziggurat.models.families.deepseek.config import DeepseekV2Config, DeepseekV3Config
from ziggurat.models.families.family import FAMILIES, Family

for _config_class, _number in ((DeepseekV2Config, 2), (DeepseekV3Config, 3)):
    FAMILIES.add(
        f"deepseek_v{_number}",
        Family(
            name=f"deepseek_v{_number}",
            config_class=_config_class,
            architectures=(f"DeepseekV{_number}ForCausalLM",),
            from_hf=hf.from_hf,
            to_hf=hf.to_hf,
            hf_names=hf.hf_names,
            ignored=hf.ignored,
        ),
    )

__all__ = ["DeepseekV2Config", "DeepseekV3Config"]
