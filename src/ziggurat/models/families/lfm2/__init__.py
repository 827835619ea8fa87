"""LFM2: gated short convolutions beside grouped attention, dense or with mixtures of experts."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.lfm2 import hf
from ziggurat.models.families.lfm2.config import Lfm2Config, Lfm2MoeConfig

for _config_class, _name, _architecture in (
    (Lfm2Config, "lfm2", "Lfm2ForCausalLM"),
    (Lfm2MoeConfig, "lfm2_moe", "Lfm2MoeForCausalLM"),
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

__all__ = ["Lfm2Config", "Lfm2MoeConfig"]
