"""OLMo 2 and 3."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields, Reach, WindowedFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class OlmoFields(DecoderFields):
    """Config fields that OLMo 2 and OLMo 3 share.

    Norms stand behind each half of a block, and over all queries and all keys of a token.
    """

    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    @property
    def block(self) -> BlockConfig:
        """The block of every layer."""
        norm = NormConfig(eps=self.norm_eps)
        bias = self.attention_bias
        attention = self.attention(bias=bias, out_bias=bias, width_norm=norm)
        return BlockConfig(mixer=attention, mlp=self.mlp(), norm=norm, norms="reordered")


@config.node
class Olmo2Config(OlmoFields):
    """OLMo 2: a decoder with norms behind the branches of its blocks.

    Paper: Team OLMo 2025, https://arxiv.org/abs/2501.00656.
    """

    kind: Literal["olmo2"] = "olmo2"

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self.decoder_of(self.alike(self.block))


@config.node
class Olmo3Config(OlmoFields, WindowedFields):
    """OLMo 3: three layers with a window to one that sees all; only the latter's rotary embedding
    is scaled for long contexts.

    Paper: Team Olmo 2025, https://arxiv.org/abs/2512.13961.
    """

    kind: Literal["olmo3"] = "olmo3"
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=5e5))
    """Rotary position embedding of global layers."""
    local_rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=5e5))
    """Rotary position embedding of local layers."""
    pattern: tuple[Reach, ...] = ("local", "local", "local", "global")
    """Which layers see all (global) and which a window (local), repeated from the first on."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        ropes = {"global": self.rope, "local": self.local_rope}
        return self.decoder_of(self.windowed(self.block, lambda number, reach: ropes[reach]))
