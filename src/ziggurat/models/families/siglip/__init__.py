"""The SigLIP family: SigLIP, and SigLIP 2 at fixed sizes."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.siglip import hf
from ziggurat.models.families.siglip.config import (
    SiglipConfig,
    SiglipImageConfig,
    SiglipTextConfig,
)

FAMILIES.add(
    "siglip",
    Family(
        name="siglip",
        config_class=SiglipConfig,
        architectures=("SiglipModel",),
        tasks=("headless",),
        inputs=("text", "image"),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        base="siglip.",
        buffers=("embeddings.position_ids",),
    ),
)

__all__ = ["SiglipConfig", "SiglipImageConfig", "SiglipTextConfig"]
