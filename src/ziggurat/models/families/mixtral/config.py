"""Mixtral."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig
from ziggurat.nn.router import RouterConfig


@config.node
class MixtralConfig(DecoderFields):
    """A Llama-like decoder whose feed-forward blocks are mixtures of experts.

    Paper: Jiang et al. 2024, https://arxiv.org/abs/2401.04088.
    """

    kind: Literal["mixtral"] = "mixtral"
    n_experts: int = 8
    """Experts of each layer; ``d_ff`` is the width of one."""
    experts_per_token: int = 2
    """Experts each token is sent to."""
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1e6))
    """Rotary position embedding."""
    window: int | None = None
    """Sliding attention window in tokens; default none."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def __post_init__(self):
        super().__post_init__()
        fits = 1 <= self.experts_per_token <= self.n_experts
        expected = f"1 to n_experts = {self.n_experts}"
        config.require(fits, "experts_per_token", self.experts_per_token, expected)
        fits = self.window is None or self.window >= 1
        config.require(fits, "window", self.window, "a number >= 1")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm, dense = NormConfig(eps=self.norm_eps), self.mlp()
        router = RouterConfig(experts=self.n_experts, chosen=self.experts_per_token)
        mixture = MixtureOfExpertsConfig(
            router=router, hidden=dense.hidden, activation=dense.activation
        )
        layer = LayerConfig(
            block=BlockConfig(mixer=self.attention(), mlp=mixture, norm=norm),
            rule=AttentionRule(self.channels_per_head**-0.5, window=self.window),
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
