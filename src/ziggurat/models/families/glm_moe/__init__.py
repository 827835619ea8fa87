"""Grouped attention with DeepSeek-V3's mixtures of experts: GLM-4.5, dots.llm1, Solar Open."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.glm_moe import hf
from ziggurat.models.families.glm_moe.config import Dots1Config, Glm4MoeConfig, SolarOpenConfig

for _name, _config_class in hf.CLASSES.items():
    FAMILIES.add(
        _name,
        Family(
            name=_name,
            config_class=_config_class,
            architectures=(hf.ARCHITECTURES[_name],),
            from_hf=hf.from_hf,
            to_hf=hf.to_hf,
            hf_names=hf.hf_names,
            ignored=hf.ignored,
        ),
    )

__all__ = ["Dots1Config", "Glm4MoeConfig", "SolarOpenConfig"]
