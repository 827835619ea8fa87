"""The Command family of Cohere: Command R (cohere) and Command R7B, Command A (cohere2)."""

from ziggurat.models.families.cohere import hf
from ziggurat.models.families.cohere.config import Cohere2Config, CohereConfig
from ziggurat.models.families.family import FAMILIES, Family

for _config_class, _name, _architecture in (
    (CohereConfig, "cohere", "CohereForCausalLM"),
    (Cohere2Config, "cohere2", "Cohere2ForCausalLM"),
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

__all__ = ["Cohere2Config", "CohereConfig"]
