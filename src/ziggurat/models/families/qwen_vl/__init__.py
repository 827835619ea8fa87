"""The Qwen-VL family: Qwen2.5-VL, Qwen3-VL, and Qwen 3.5 with images; dense and with experts."""

from ziggurat.models import patch_processor
from ziggurat.models.families.qwen_vl import hf
from ziggurat.models.families.qwen_vl.config import (
    Qwen3MoeVLConfig,
    Qwen3VLConfig,
    Qwen25VLConfig,
    Qwen35MoeVLConfig,
    Qwen35VLConfig,
)
from ziggurat.models.families.qwen_vl.vision import Qwen3VisionConfig, Qwen25VisionConfig
from ziggurat.models.families.vision_language_family import VISION_LANGUAGE, VisionLanguageFamily
from ziggurat.models.patch_processor import PatchProcessorConfig

for _name, _config_class in hf.CLASSES.items():
    VISION_LANGUAGE.add(
        _name,
        VisionLanguageFamily(
            name=_name,
            config_class=_config_class,
            model_type=_name,
            from_hf=hf.from_hf,
            to_hf=hf.to_hf,
            tower_names=hf.tower_weights,
            processor_class=PatchProcessorConfig,
            read_processor=hf.read_processor,
            write_processor=patch_processor.to_hf,
            prepare=hf.prepare,
            measure=hf.measure,
            text_names=hf.text_weights,
            published_name=hf.qwen25_name if _name == "qwen2_5_vl" else hf.qwen3_name,
        ),
    )

__all__ = [
    "Qwen3MoeVLConfig",
    "Qwen3VLConfig",
    "Qwen3VisionConfig",
    "Qwen25VLConfig",
    "Qwen25VisionConfig",
    "Qwen35MoeVLConfig",
    "Qwen35VLConfig",
]
