"""The Qwen family: Qwen 2, 2.5 and 3, dense."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.qwen import gguf, hf
from ziggurat.models.families.qwen.config import Qwen2Config, Qwen3Config

for _config_class, _name in ((Qwen2Config, "qwen2"), (Qwen3Config, "qwen3")):
    FAMILIES.add(
        _name,
        Family(
            name=_name,
            config_class=_config_class,
            architectures=(f"{_name.capitalize()}ForCausalLM",),
            from_hf=hf.from_hf,
            to_hf=hf.to_hf,
            hf_names=hf.hf_names,
            from_gguf=gguf.from_gguf,
            to_gguf=gguf.to_gguf,
            gguf_names=gguf.gguf_names,
            gguf_architectures=(_name,),
        ),
    )

__all__ = ["Qwen2Config", "Qwen3Config"]
