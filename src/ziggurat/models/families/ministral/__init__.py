"""The Ministral family: Ministral 8B (ministral) and Ministral 3 (ministral3)."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.ministral import hf
from ziggurat.models.families.ministral.config import Ministral3Config, MinistralConfig

for _config_class, _name, _architecture in (
    (MinistralConfig, "ministral", "MinistralForCausalLM"),
    (Ministral3Config, "ministral3", "Ministral3ForCausalLM"),
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

__all__ = ["Ministral3Config", "MinistralConfig"]
