"""The Qwen-VL family: Qwen2.5-VL and Qwen3-VL, dense."""

from ziggurat.models import patch_processor
from ziggurat.models.families.qwen_vl import hf
from ziggurat.models.families.qwen_vl.config import Qwen3VLConfig, Qwen25VLConfig
from ziggurat.models.families.qwen_vl.vision import Qwen3VisionConfig, Qwen25VisionConfig
from ziggurat.models.families.vision_language_family import VISION_LANGUAGE, VisionLanguageFamily
from ziggurat.models.patch_processor import PatchProcessorConfig

for _config_class, _name, _published in (
    (Qwen25VLConfig, "qwen2_5_vl", hf.qwen25_name),
    (Qwen3VLConfig, "qwen3_vl", hf.qwen3_name),
):
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
            published_name=_published,
        ),
    )

__all__ = ["Qwen3VLConfig", "Qwen3VisionConfig", "Qwen25VLConfig", "Qwen25VisionConfig"]
