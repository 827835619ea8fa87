"""Mamba-2: state spaces alone, without attention or feed-forward blocks."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.mamba2 import hf
from ziggurat.models.families.mamba2.config import Mamba2ModelConfig

FAMILIES.add(
    "mamba2",
    Family(
        name="mamba2",
        config_class=Mamba2ModelConfig,
        architectures=("Mamba2ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        base="backbone.",
    ),
)

__all__ = ["Mamba2ModelConfig"]
