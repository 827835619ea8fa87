"""Qwen 3 with mixtures of experts."""

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


@config.node
class Qwen3MoeConfig(DecoderFields):
    """Qwen 3's attention, with mixtures of experts in all or some layers.

    Paper: Yang et al. 2025, https://arxiv.org/abs/2505.09388.
    """

    kind: Literal["qwen3_moe"] = "qwen3_moe"
    n_experts: int = 128
    """Experts of each sparse layer."""
    experts_per_token: int = 8
    """Experts each token is sent to."""
    d_ff_expert: int = 768
    """Feed-forward width of one expert; ``d_ff`` is that of dense layers."""
    normalise_weights: bool = True
    """The weights of the chosen experts sum to one."""
    sparse_every: int = 1
    """Every so many layers one is sparse: layer ``i`` (from 0) where ``i + 1`` is a multiple."""
    dense_layers: tuple[int, ...] = ()
    """Layers (from 0) that are dense all the same."""
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1e6))
    """Rotary position embedding."""
    window: int | None = None
    """Sliding attention window in tokens; default none."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""

    def __post_init__(self):
        super().__post_init__()
        fits = 1 <= self.experts_per_token <= self.n_experts
        expected = f"1 to n_experts = {self.n_experts}"
        config.require(fits, "experts_per_token", self.experts_per_token, expected)
        for name in ("d_ff_expert", "sparse_every"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        fits = self.window is None or self.window >= 1
        config.require(fits, "window", self.window, "a number >= 1")
        fits = all(0 <= layer < self.n_layers for layer in self.dense_layers)
        expected = f"numbers of layers, 0 to {self.n_layers - 1}"
        config.require(fits, "dense_layers", list(self.dense_layers), expected)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer (from 0) is a mixture of experts."""
        return layer not in self.dense_layers and (layer + 1) % self.sparse_every == 0

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        bias = self.attention_bias
        attention = self.attention(bias=bias, out_bias=bias, head_norm=norm)
        mixture = MixtureOfExpertsConfig(
            router=RouterConfig(
                experts=self.n_experts,
                chosen=self.experts_per_token,
                normalise=self.normalise_weights,
            ),
            hidden=self.d_ff_expert,
            activation=self.activation,
        )
        rule = AttentionRule(self.channels_per_head**-0.5, window=self.window)

        def layer(mlp: MlpConfig) -> LayerConfig:
            block = BlockConfig(mixer=attention, mlp=mlp, norm=norm)
            return LayerConfig(block=block, rule=rule, rope=self.rope)

        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(
                layer(mixture if self.is_sparse(i) else self.mlp()) for i in range(self.n_layers)
            ),
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )
