"""The Mixtral family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.mixtral import gguf, hf
from ziggurat.models.families.mixtral.config import MixtralConfig

FAMILIES.add(
    "mixtral",
    Family(
        name="mixtral",
        config_class=MixtralConfig,
        architectures=("MixtralForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        from_gguf=gguf.from_gguf,
        to_gguf=gguf.to_gguf,
        gguf_names=gguf.gguf_names,
        gguf_architectures=(gguf.NAME,),
        gguf_experts=True,
    ),
)

__all__ = ["MixtralConfig"]
