"""The ELECTRA family: discriminators, and the generators they were trained beside."""

from ziggurat.models.families.electra import hf
from ziggurat.models.families.electra.config import ElectraConfig
from ziggurat.models.families.encoder_fields import TEXT_TASKS
from ziggurat.models.families.family import FAMILIES, Family

FAMILIES.add(
    "electra",
    Family(
        name="electra",
        config_class=ElectraConfig,
        architectures=("ElectraModel",),
        tasks=(*TEXT_TASKS, "replaced"),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        as_found=hf.as_found,
        copies=hf.COPIES,
        ignored=hf.ignored,
        base="electra.",
        buffers=("embeddings.position_ids",),
    ),
)

__all__ = ["ElectraConfig"]
