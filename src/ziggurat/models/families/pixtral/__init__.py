"""Pixtral's vision tower before a language model: Mistral 3 and Pixtral 12B."""

from ziggurat.models import pixtral_processor
from ziggurat.models.families.pixtral import hf
from ziggurat.models.families.pixtral.config import (
    LlavaPixtralConfig,
    Mistral3Config,
    PixtralVisionConfig,
)
from ziggurat.models.families.vision_language_family import VISION_LANGUAGE, VisionLanguageFamily
from ziggurat.models.pixtral_processor import PixtralProcessorConfig

for _name, _type, _config_class in (
    ("mistral3", "mistral3", Mistral3Config),
    ("llava_pixtral", "llava", LlavaPixtralConfig),
):
    VISION_LANGUAGE.add(
        _name,
        VisionLanguageFamily(
            name=_name,
            config_class=_config_class,
            model_type=_type,
            tower_type=hf.PIXTRAL,
            from_hf=hf.from_hf,
            to_hf=hf.to_hf,
            tower_names=hf.tower_weights,
            processor_class=PixtralProcessorConfig,
            read_processor=pixtral_processor.read_processor,
            write_processor=pixtral_processor.to_hf,
            write_together=pixtral_processor.to_hf_together,
            prepare=hf.prepare,
            measure=hf.measure,
            published_name=hf.published_name,
            ignored=hf.ignored,
        ),
    )

__all__ = ["LlavaPixtralConfig", "Mistral3Config", "PixtralVisionConfig"]
