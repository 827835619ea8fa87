"""The DINOv3 family: its vision transformers."""

from ziggurat.models.families.dinov3 import hf
from ziggurat.models.families.dinov3.config import Dinov3Config
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "dinov3",
    Family(
        name="dinov3",
        config_class=Dinov3Config,
        architectures=("DINOv3ViTModel",),
        tasks=("headless",),
        inputs=("image",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        ignored=hf.ignored,
    ),
)

__all__ = ["Dinov3Config"]
