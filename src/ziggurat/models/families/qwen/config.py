"""Qwen 2, 2.5 and 3 (dense)."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields, Reach, reach_of_layers
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class QwenFields(DecoderFields):
    """Config fields that Qwen 2 and Qwen 3 share."""

    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1e6))
    """Rotary position embedding."""
    window: int | None = None
    """Tokens that local layers see; default none, which no layer may need then."""
    pattern: tuple[Reach, ...] = ("global",)
    """Which layers see all (global) and which a window (local), repeated from the first on."""

    def __post_init__(self):
        super().__post_init__()
        config.require(len(self.pattern) >= 1, "pattern", self.pattern, "at least one entry")
        needed = "local" in reach_of_layers(self.pattern, self.n_layers)
        fits = self.window is None if not needed else (self.window or 0) >= 1
        config.require(
            fits, "window", self.window, "a number >= 1 if layers are local, otherwise none"
        )

    def _decoder(self, block: BlockConfig) -> DecoderConfig:
        scale = self.channels_per_head**-0.5

        def layer(reach: Reach) -> LayerConfig:
            rule = AttentionRule(scale, window=self.window if reach == "local" else None)
            return LayerConfig(block=block, rule=rule, rope=self.rope)

        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(layer(reach) for reach in reach_of_layers(self.pattern, self.n_layers)),
            norm=block.norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )


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
