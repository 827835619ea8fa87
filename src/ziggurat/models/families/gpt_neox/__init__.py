"""The GPT-NeoX family: Pythia, GPT-NeoX-20B and models after them."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.gpt_neox import hf
from ziggurat.models.families.gpt_neox.config import GPTNeoXConfig

FAMILIES.add(
    "gpt_neox",
    Family(
        name="gpt_neox",
        config_class=GPTNeoXConfig,
        architectures=("GPTNeoXForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
        base="gpt_neox.",
        buffers=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    ),
)

__all__ = ["GPTNeoXConfig"]
