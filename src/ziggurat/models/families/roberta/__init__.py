"""The RoBERTa family: RoBERTa, XLM-RoBERTa and CamemBERT."""

from ziggurat.models.families.encoder_fields import TEXT_TASKS, left_out
from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.roberta import hf
from ziggurat.models.families.roberta.config import RobertaConfig

FAMILIES.add(
    "roberta",
    Family(
        name="roberta",
        config_class=RobertaConfig,
        architectures=tuple(f"{stem}Model" for stem in hf.STEMS.values()),
        tasks=TEXT_TASKS,
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        as_found=hf.as_found,
        copies=hf.COPIES,
        ignored=lambda config, name: left_out(config, name, "lm_head."),
        base="roberta.",
        buffers=("embeddings.position_ids",),
    ),
)

__all__ = ["RobertaConfig"]
