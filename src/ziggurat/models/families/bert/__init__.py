"""The BERT family: encoders such as BERT and MiniLM."""

from ziggurat.models.families.bert import hf
from ziggurat.models.families.bert.config import BertConfig
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "bert",
    Family(
        name="bert",
        config_class=BertConfig,
        architectures=("BertModel",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        base="bert.",
        buffers=("embeddings.position_ids",),
        ignored=lambda config, name: name.endswith(hf.HEAD),
        encoder=True,
    ),
)

__all__ = ["BertConfig"]
