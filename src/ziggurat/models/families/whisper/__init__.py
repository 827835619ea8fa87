"""The Whisper family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.whisper import hf
from ziggurat.models.families.whisper.config import WhisperConfig

FAMILIES.add(
    "whisper",
    Family(
        name="whisper",
        config_class=WhisperConfig,
        architectures=("WhisperForConditionalGeneration",),
        tasks=("speech",),
        inputs=("audio",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        copies=hf.COPIES,
        base="model.",
    ),
)

__all__ = ["WhisperConfig"]
