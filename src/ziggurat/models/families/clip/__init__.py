"""The CLIP family."""

from ziggurat.models.families.clip import hf
from ziggurat.models.families.clip.config import ClipConfig, ClipImageConfig, ClipTextConfig
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "clip",
    Family(
        name="clip",
        config_class=ClipConfig,
        architectures=("CLIPModel",),
        tasks=("headless",),
        inputs=("text", "image"),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        base="clip.",
        buffers=("embeddings.position_ids",),
    ),
)

__all__ = ["ClipConfig", "ClipImageConfig", "ClipTextConfig"]
