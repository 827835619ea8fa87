"""The Qwen-VL family: vision towers of Qwen2.5-VL and Qwen3-VL."""

from ziggurat.models.families.qwen_vl.vision import Qwen3VisionConfig, Qwen25VisionConfig

__all__ = ["Qwen3VisionConfig", "Qwen25VisionConfig"]
