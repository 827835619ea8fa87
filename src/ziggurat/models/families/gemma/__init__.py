"""The Gemma family: Gemma 1, Gemma 2, and the text models of Gemma 3."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.gemma import hf
from ziggurat.models.families.gemma.config import Gemma2Config, Gemma3Config, GemmaConfig

for _config_class, _name in (
    (GemmaConfig, "gemma"),
    (Gemma2Config, "gemma2"),
    (Gemma3Config, "gemma3"),
):
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

__all__ = ["Gemma2Config", "Gemma3Config", "GemmaConfig"]
