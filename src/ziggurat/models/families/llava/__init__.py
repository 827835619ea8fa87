"""The LLaVA family: CLIP before a language model."""

from ziggurat.models import image_processor
from ziggurat.models.families.llava import hf
from ziggurat.models.families.llava.config import LlavaConfig
from ziggurat.models.families.vision_language_family import VISION_LANGUAGE, VisionLanguageFamily
from ziggurat.models.image_processor import ImageProcessorConfig

VISION_LANGUAGE.add(
    "llava",
    VisionLanguageFamily(
        name="llava",
        config_class=LlavaConfig,
        model_type="llava",
        tower_type=hf.CLIP,
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        tower_names=hf.tower_weights,
        processor_class=ImageProcessorConfig,
        read_processor=hf.read_processor,
        write_processor=image_processor.to_hf,
        prepare=hf.prepare,
        measure=hf.measure,
        ignored=hf.ignored,
    ),
)

__all__ = ["LlavaConfig"]
