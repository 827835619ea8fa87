"""The Ernie family: Ernie 4.5, dense and with mixtures of experts."""

from ziggurat.models.families.ernie import hf
from ziggurat.models.families.ernie.config import Ernie45Config, Ernie45MoeConfig
from ziggurat.models.families.family import FAMILIES, Family

for _config_class, _name, _architecture in (
    (Ernie45Config, "ernie4_5", "Ernie4_5ForCausalLM"),
    (Ernie45MoeConfig, "ernie4_5_moe", "Ernie4_5_MoeForCausalLM"),
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
            ignored=hf.ignored,
        ),
    )

__all__ = ["Ernie45Config", "Ernie45MoeConfig"]
