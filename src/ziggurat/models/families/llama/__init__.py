"""The Llama family: Llama 2 and 3.x, SmolLM2, and Mistral's dense models."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.llama import gguf, hf
from ziggurat.models.families.llama.config import LlamaConfig

FAMILIES.add(
    "llama",
    Family(
        name="llama",
        config_class=LlamaConfig,
        architectures=("LlamaForCausalLM", "MistralForCausalLM"),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        from_gguf=gguf.from_gguf,
        to_gguf=gguf.to_gguf,
        gguf_names=gguf.gguf_names,
        gguf_architectures=("llama",),
    ),
)

__all__ = ["LlamaConfig"]
