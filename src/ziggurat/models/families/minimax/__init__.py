"""The MiniMax family: M2."""

from ziggurat.models.families.family import FAMILIES, Family
from ziggurat.models.families.minimax import hf
from ziggurat.models.families.minimax.config import MiniMaxM2Config

FAMILIES.add(
    "minimax_m2",
    Family(
        name="minimax_m2",
        config_class=MiniMaxM2Config,
        architectures=("MiniMaxM2ForCausalLM",),
        from_hf=hf.from_hf,
        to_hf=hf.to_hf,
        hf_names=hf.hf_names,
    ),
)

__all__ = ["MiniMaxM2Config"]
