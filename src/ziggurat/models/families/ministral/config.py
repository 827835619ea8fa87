"""Ministral and Ministral 3 (text)."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import WindowedFields
from ziggurat.nn.attention_context import QueryScaling
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig, YarnScaling


def ministral3_rope() -> RopeConfig:
    """The rotary embedding of Ministral 3, for 262144 tokens."""
    scaling = YarnScaling(factor=16.0, original_length=16384, mscale=1.0, mscale_all_dim=1.0)
    return RopeConfig(theta=1e6, scaling=scaling)


@config.node
class MinistralConfig(WindowedFields):
    """Ministral: a Mistral whose layers may differ in their window.

    Paper: Mistral AI 2024, https://mistral.ai/news/ministraux.
    """

    kind: Literal["ministral"] = "ministral"

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        block = BlockConfig(mixer=self.attention(), mlp=self.mlp(), norm=norm)
        return self.decoder_of(self.windowed(block))


@config.node
class Ministral3Config(WindowedFields):
    """Ministral 3: queries grow with their position, as in Llama 4.

    Paper: Mistral AI 2025, https://mistral.ai/news/mistral-3.
    """

    kind: Literal["ministral3"] = "ministral3"
    head_dim: int = 128
    """Channels of one head."""
    rope: RopeConfig = dataclasses.field(default_factory=ministral3_rope)
    """Rotary position embedding."""
    query_growth: float = 0.1
    """``a`` in ``1 + a ln(1 + floor(p / L))``, by which a query at position ``p`` is multiplied."""
    query_growth_length: int = 16384
    """``L`` in it, in tokens."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def __post_init__(self):
        super().__post_init__()
        length = self.query_growth_length
        config.require(length >= 1, "query_growth_length", length, "a number >= 1")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        block = BlockConfig(mixer=self.attention(), mlp=self.mlp(), norm=norm)
        growth = QueryScaling(self.query_growth, self.query_growth_length)

        def scaled(layer):
            return dataclasses.replace(
                layer, rule=dataclasses.replace(layer.rule, query_scaling=growth)
            )

        return self.decoder_of([scaled(layer) for layer in self.windowed(block)])
