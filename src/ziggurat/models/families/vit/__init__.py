"""The ViT family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.image_encoder_fields import IMAGE_TASKS
from ziggurat.models.families.vit import hf
from ziggurat.models.families.vit.config import VitConfig

FAMILIES.add(
    "vit",
    Family(
        name="vit",
        config_class=VitConfig,
        architectures=("ViTModel",),
        tasks=IMAGE_TASKS,
        inputs=("image",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        as_found=hf.as_found,
        ignored=lambda config, name: name.endswith("embeddings.mask_token"),
        base="vit.",
    ),
)

__all__ = ["VitConfig"]
