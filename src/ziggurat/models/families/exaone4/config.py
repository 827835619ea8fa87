"""EXAONE 4."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import WindowedFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class Exaone4Config(WindowedFields):
    """A decoder with norms behind the branches of its blocks and over heads; where some layers have
    a window, those that see all have no positions.

    Paper: LG AI Research 2025, https://arxiv.org/abs/2507.11407.
    """

    kind: Literal["exaone4"] = "exaone4"
    global_rope: bool = True
    """Whether layers that see all have positions; those with a window do."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        attention = self.attention(head_norm=norm)
        block = BlockConfig(mixer=attention, mlp=self.mlp(), norm=norm, norms="reordered")
        ropes = {"local": self.rope, "global": self.rope if self.global_rope else None}
        return self.decoder_of(self.windowed(block, lambda number, reach: ropes[reach]))
