"""The DINOv2 family, with and without registers."""

from ziggurat.models.families.dinov2 import hf
from ziggurat.models.families.dinov2.config import Dinov2Config
from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.image_encoder_fields import IMAGE_TASKS

FAMILIES.add(
    "dinov2",
    Family(
        name="dinov2",
        config_class=Dinov2Config,
        architectures=("Dinov2Model", "Dinov2WithRegistersModel"),
        tasks=IMAGE_TASKS,
        inputs=("image",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["Dinov2Config"]
