"""The OLMo family: OLMo 2 and 3."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.olmo import hf
from ziggurat.models.families.olmo.config import Olmo2Config, Olmo3Config

for _config_class, _name in ((Olmo2Config, "olmo2"), (Olmo3Config, "olmo3")):
    FAMILIES.add(
        _name,
        Family(
            name=_name,
            config_class=_config_class,
            architectures=(f"{_name.capitalize()}ForCausalLM",),
            from_hf=hf.from_hf,
            to_hf=hf.to_hf,
            hf_names=hf.hf_names,
        ),
    )

__all__ = ["Olmo2Config", "Olmo3Config"]
