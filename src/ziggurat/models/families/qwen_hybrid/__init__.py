"""The Qwen family's hybrids of gated delta nets and attention: Qwen3-Next and Qwen 3.5."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.qwen_hybrid import hf
from ziggurat.models.families.qwen_hybrid.config import (
    Qwen3NextConfig,
    Qwen35Config,
    Qwen35MoeConfig,
)
from ziggurat.models.families.qwen_hybrid.names import hf_names

for _type, _config_class in hf.CLASSES.items():
    _name = _type.removesuffix("_text")
    FAMILIES.add(
        _name,
        Family(
            name=_name,
            config_class=_config_class,
            architectures=(hf.ARCHITECTURES[_type],),
            from_hf=hf.from_hf,
            to_hf=hf.to_hf,
            hf_names=hf_names,
            ignored=hf.ignored,
        ),
    )

__all__ = ["Qwen3NextConfig", "Qwen35Config", "Qwen35MoeConfig"]
