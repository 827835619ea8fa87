"""The GLM family: GLM-4 of 2024 (glm) and of 2025 (glm4), dense."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.glm import hf
from ziggurat.models.families.glm.config import Glm4Config, GlmConfig

for _config_class, _name, _architecture in (
    (GlmConfig, "glm", "GlmForCausalLM"),
    (Glm4Config, "glm4", "Glm4ForCausalLM"),
):
    FAMILIES.add(
        _name,
        Family(
            name=_name,
            config_class=_config_class,
            architectures=(_architecture,),
            from_hf=hf.from_hf,
            to_hf=hf.to_hf,
            hf_names=hf.hf_names,
        ),
    )

__all__ = ["Glm4Config", "GlmConfig"]
