"""Seed-OSS."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class SeedOssConfig(DecoderFields):
    """A Llama-like decoder with biases on query, key and value.

    Paper: ByteDance Seed Team 2025, https://github.com/ByteDance-Seed/seed-oss.
    """

    kind: Literal["seed_oss"] = "seed_oss"
    head_dim: int = 128
    """Channels of one head."""
    attention_bias: bool = True
    """Biases on query, key and value projections."""
    attention_out_bias: bool = False
    """Bias on the output projection."""
    mlp_bias: bool = False
    """Biases in the feed-forward block."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        block = BlockConfig(
            mixer=self.attention(bias=self.attention_bias, out_bias=self.attention_out_bias),
            mlp=self.mlp(self.mlp_bias),
            norm=NormConfig(eps=self.norm_eps),
        )
        return self.decoder_of(self.alike(block))
