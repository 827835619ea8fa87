"""LFM2, dense and with mixtures of experts."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig, MlpConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig
from ziggurat.nn.router import RouterConfig
from ziggurat.nn.short_convolution import ShortConvolutionConfig


@config.node
class Lfm2Config(DecoderFields):
    """Gated short convolutions, with grouped attention in a few layers.

    Paper: Liquid AI 2025, https://arxiv.org/abs/2511.23404.
    """

    kind: Literal["lfm2", "lfm2_moe"] = "lfm2"
    attention_layers: tuple[int, ...]
    """Layers (from 0) with attention; the others have a convolution."""
    taps: int = 3
    """Tokens that a convolution sees."""
    convolution_bias: bool = False
    """Biases on convolutions and the projections around them."""
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1e6))
    """Rotary position embedding."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.taps >= 2, "taps", self.taps, "a number >= 2")
        config.require(self.activation == "silu", "activation", self.activation, "silu")
        fits = all(0 <= layer < self.n_layers for layer in self.attention_layers)
        expected = f"numbers of layers, 0 to {self.n_layers - 1}"
        config.require(fits, "attention_layers", list(self.attention_layers), expected)

    def feed_forward(self, layer: int) -> MlpConfig:
        """Feed-forward part of a layer (from 0)."""
        return self.mlp()

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        attention = self.attention(head_norm=norm)
        convolution = ShortConvolutionConfig(
            channels=self.d_model, taps=self.taps, bias=self.convolution_bias
        )
        rule = AttentionRule(self.channels_per_head**-0.5)

        def layer(number: int) -> LayerConfig:
            attends = number in self.attention_layers
            mixer, mlp = attention if attends else convolution, self.feed_forward(number)
            block = BlockConfig(mixer=mixer, mlp=mlp, norm=norm)
            return LayerConfig(block=block, rule=rule, rope=self.rope if attends else None)

        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(map(layer, range(self.n_layers))),
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )


@config.node
class Lfm2MoeConfig(Lfm2Config):
    """LFM2 whose layers are mixtures of experts, but for the first."""

    kind: Literal["lfm2_moe"] = "lfm2_moe"
    dense_layers: int = 2
    """Layers that are dense, from the first on; ``d_ff`` is their width."""
    n_experts: int = 32
    """Experts of each sparse layer."""
    experts_per_token: int = 4
    """Experts each token is sent to."""
    d_ff_expert: int = 1792
    """Feed-forward width of one expert."""
    normalise_weights: bool = True
    """The weights of the chosen experts sum to one."""
    routed_scale: float = 1.0
    """Multiplies the weights of the chosen experts."""
    correction: bool = True
    """A bias for each expert takes part in the choice."""

    def __post_init__(self):
        super().__post_init__()
        fits = 1 <= self.experts_per_token <= self.n_experts
        expected = f"1 to n_experts = {self.n_experts}"
        config.require(fits, "experts_per_token", self.experts_per_token, expected)
        config.require(self.d_ff_expert >= 1, "d_ff_expert", self.d_ff_expert, "a number >= 1")
        config.require(self.dense_layers >= 0, "dense_layers", self.dense_layers, "a number >= 0")

    def feed_forward(self, layer: int) -> MlpConfig:
        """Feed-forward part of a layer (from 0)."""
        if layer < self.dense_layers:
            return self.mlp()
        router = RouterConfig(
            experts=self.n_experts,
            chosen=self.experts_per_token,
            scores="sigmoid",
            normalise=self.normalise_weights,
            scale=self.routed_scale,
            correction=self.correction,
        )
        return MixtureOfExpertsConfig(router=router, hidden=self.d_ff_expert)
