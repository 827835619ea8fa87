"""The BERT family: encoders such as BERT and MiniLM."""

from ziggurat.models.families.bert import hf
from ziggurat.models.families.bert.config import BertConfig
from ziggurat.models.families.encoder_fields import TEXT_TASKS
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "bert",
    Family(
        name="bert",
        config_class=BertConfig,
        architectures=("BertModel",),
        tasks=TEXT_TASKS,
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        as_found=hf.as_found,
        copies=hf.COPIES,
        ignored=hf.ignored,
        base="bert.",
        buffers=("embeddings.position_ids",),
    ),
)

__all__ = ["BertConfig"]
