"""Phi-3, Phi-3.5 and Phi-4 (dense)."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import PartialRotaryFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class Phi3Config(PartialRotaryFields):
    """A Llama-like decoder whose long contexts are a matter of LongRoPE.

    Paper: Abdin et al. 2024, https://arxiv.org/abs/2404.14219.
    """

    kind: Literal["phi3"] = "phi3"
    window: int | None = None
    """Sliding attention window in tokens; default none."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def __post_init__(self):
        super().__post_init__()
        window = self.window
        config.require(window is None or window >= 1, "window", window, "a number >= 1")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        attention = self.attention(rotary_dim=self.rotary_dim)
        block = BlockConfig(mixer=attention, mlp=self.mlp(), norm=NormConfig(eps=self.norm_eps))
        return self.decoder_of(self.alike(block, window=self.window))
