"""MiniMax-M2."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.mixture_fields import MixtureFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class MiniMaxM2Config(MixtureFields):
    """Experts in every layer behind a sigmoid router with a correction, and norms over all heads of
    queries and of keys together.

    Source: MiniMax 2025, https://huggingface.co/MiniMaxAI/MiniMax-M2.
    """

    kind: Literal["minimax_m2"] = "minimax_m2"
    n_experts: int = 256
    """Experts of each layer."""
    d_ff_expert: int = 1536
    """Feed-forward width of one expert."""
    rotary_dim: int | None = None
    """First channels of a head that rotate; default all."""
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=5e6))
    """Rotary position embedding."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.d_ff is None, "d_ff", self.d_ff, "none, as no layer is dense")
        dim, most = self.rotary_dim, self.channels_per_head
        fits = dim is None or (dim % 2 == 0 and 2 <= dim <= most)
        config.require(fits, "rotary_dim", dim, f"an even number, 2 to {most}")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        layer = LayerConfig(
            block=BlockConfig(
                mixer=self.attention(width_norm=norm, rotary_dim=self.rotary_dim),
                mlp=self.mixture(scores="sigmoid", correction=True),
                norm=norm,
            ),
            rule=AttentionRule(self.channels_per_head**-0.5),
            rope=self.rope,
        )
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=(layer,) * self.n_layers,
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )
