"""Qwen 2, 2.5 and 3 (dense)."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import WindowedFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class QwenFields(WindowedFields):
    """Config fields that Qwen 2 and Qwen 3 share."""

    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1e6))
    """Rotary position embedding."""

    def _decoder(self, block: BlockConfig) -> DecoderConfig:
        return self.decoder_of(self.windowed(block))


@config.node
class Qwen2Config(QwenFields):
    """Qwen 2 and 2.5: a Llama-like decoder with biases on query, key and value.

    Paper: Yang et al. 2024, https://arxiv.org/abs/2407.10671.
    """

    kind: Literal["qwen2"] = "qwen2"

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        attention = self.attention(bias=True)
        return self._decoder(BlockConfig(mixer=attention, mlp=self.mlp(), norm=norm))


@config.node
class Qwen3Config(QwenFields):
    """Qwen 3: without those biases, and with a norm over each head of queries and keys.

    Paper: Yang et al. 2025, https://arxiv.org/abs/2505.09388.
    """

    kind: Literal["qwen3"] = "qwen3"
    head_dim: int = 128
    """Channels of one head."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        attention = self.attention(
            bias=self.attention_bias, out_bias=self.attention_bias, head_norm=norm
        )
        return self._decoder(BlockConfig(mixer=attention, mlp=self.mlp(), norm=norm))
