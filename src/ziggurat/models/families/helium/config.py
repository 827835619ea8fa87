"""Helium."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class HeliumConfig(DecoderFields):
    """A Llama-like decoder for languages of Europe.

    Paper: Kyutai 2025, https://kyutai.org/2025/04/30/helium.html.
    """

    kind: Literal["helium"] = "helium"
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1e5))
    """Rotary position embedding."""
    attention_bias: bool = False
    """Biases on query, key and value projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward block."""
    norm_eps: float = 1e-8
    """Added to the mean square in norms."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        block = BlockConfig(
            mixer=self.attention(bias=self.attention_bias),
            mlp=self.mlp(self.mlp_bias),
            norm=NormConfig(eps=self.norm_eps),
        )
        return self.decoder_of(self.alike(block))
