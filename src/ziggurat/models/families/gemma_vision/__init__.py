"""The Gemma family with images: Gemma 3 from 4B on."""

from ziggurat.models import image_processor
from ziggurat.models.families.gemma_vision import hf
from ziggurat.models.families.gemma_vision.config import Gemma3VisionConfig
from ziggurat.models.families.vision_language_family import VISION_LANGUAGE, VisionLanguageFamily
from ziggurat.models.image_processor import ImageProcessorConfig

VISION_LANGUAGE.add(
    "gemma3_vision",
    VisionLanguageFamily(
        name="gemma3_vision",
        config_class=Gemma3VisionConfig,
        model_type="gemma3",
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

__all__ = ["Gemma3VisionConfig"]
