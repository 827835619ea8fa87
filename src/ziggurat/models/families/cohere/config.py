"""Command R, Command R7B and Command A, of Cohere."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields, Reach, WindowedFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class CommandFields(DecoderFields):
    """Config fields that all Command models share.

    Attention and feed-forward part of a block read one LayerNorm without bias, in parallel.
    """

    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    logit_scale: float = 0.0625
    """Multiplies the logits."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""

    def _block(self, head_norm: bool) -> BlockConfig:
        norm, bias = NormConfig(kind="layer", eps=self.norm_eps, bias=False), self.attention_bias
        of_heads = {"head_norm": norm, "norm_each_head": True} if head_norm else {}
        attention = self.attention(bias=bias, out_bias=bias, **of_heads)
        return BlockConfig(
            mixer=attention, mlp=self.mlp(), norm=norm, parallel=True, shared_norm=True
        )


@config.node
class CohereConfig(CommandFields):
    """Command R and R+.

    Paper: Cohere 2024, https://cohere.com/blog/command-r.
    """

    kind: Literal["cohere"] = "cohere"
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=5e5))
    """Rotary position embedding."""
    head_norm: bool = False
    """A norm over each head of queries and keys, with a scale of its own for each (Command R+)."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        layers = self.alike(self._block(self.head_norm))
        return self.decoder_of(layers, logit_scale=self.logit_scale)


@config.node
class Cohere2Config(CommandFields, WindowedFields):
    """Command R7B and Command A: three layers with a window to one that sees all, and the latter
    without positions.

    Papers: Cohere 2025, https://arxiv.org/abs/2504.00698; NoPE: Yang et al. 2025,
    https://arxiv.org/abs/2501.18795.
    """

    kind: Literal["cohere2"] = "cohere2"
    pattern: tuple[Reach, ...] = ("local", "local", "local", "global")
    """Which layers see all (global) and which a window (local), repeated from the first on."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        ropes = {"local": self.rope, "global": None}
        layers = self.windowed(self._block(False), lambda number, reach: ropes[reach])
        return self.decoder_of(layers, logit_scale=self.logit_scale)
