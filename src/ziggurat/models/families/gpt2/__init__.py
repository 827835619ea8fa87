"""The GPT-2 family."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.gpt2 import hf
from ziggurat.models.families.gpt2.config import Gpt2Config

FAMILIES.add(
    "gpt2",
    Family(
        name="gpt2",
        config_class=Gpt2Config,
        architectures=("GPT2LMHeadModel",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        base="transformer.",
        buffers=(".attn.bias", ".attn.masked_bias"),  # the causal mask
    ),
)

__all__ = ["Gpt2Config"]
