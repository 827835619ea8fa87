"""GPT-OSS."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields, Reach, reach_of_layers
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.moe import ClampedSwiglu, MixtureOfExpertsConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig, YarnScaling
from ziggurat.nn.router import RouterConfig


@config.node
class GptOssConfig(DecoderFields):
    """Attention with sinks that alternates between a window and all tokens, and mixtures of experts
    with biases and a clamped gate.

    Paper: OpenAI 2025, https://arxiv.org/abs/2508.10925.
    """

    kind: Literal["gpt_oss"] = "gpt_oss"
    n_experts: int = 32
    """Experts of each layer; ``d_ff`` is the width of one."""
    experts_per_token: int = 4
    """Experts each token is sent to."""
    gate_alpha: float = 1.702
    """Gain inside the gate's sigmoid."""
    gate_limit: float = 7.0
    """Bound of the gate's inputs."""
    activation: Literal["silu"] = "silu"
    """The gate is a clamped SwiGLU; nothing else."""
    rope: RopeConfig = dataclasses.field(
        default_factory=lambda: RopeConfig(
            theta=150000.0,
            scaling=YarnScaling(factor=32.0, original_length=4096, truncate=False),
        )
    )
    """Rotary position embedding."""
    window: int = 128
    """Tokens that local layers see."""
    pattern: tuple[Reach, ...] = ("local", "global")
    """Which layers see a window (local) and which all (global), repeated from the first on."""
    attention_bias: bool = True
    """Biases on query, key, value and output projections."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def __post_init__(self):
        super().__post_init__()
        fits = 1 <= self.experts_per_token <= self.n_experts
        expected = f"1 to n_experts = {self.n_experts}"
        config.require(fits, "experts_per_token", self.experts_per_token, expected)
        config.require(self.window >= 1, "window", self.window, "a number >= 1")
        config.require(len(self.pattern) >= 1, "pattern", self.pattern, "at least one entry")
        config.require(self.gate_limit > 0, "gate_limit", self.gate_limit, "a positive number")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm, bias = NormConfig(eps=self.norm_eps), self.attention_bias
        mixture = MixtureOfExpertsConfig(
            router=RouterConfig(experts=self.n_experts, chosen=self.experts_per_token, bias=True),
            hidden=self.mlp().hidden,
            activation=ClampedSwiglu(self.gate_alpha, self.gate_limit),
            bias=True,
        )
        attention = self.attention(bias=bias, out_bias=bias, sinks=True)
        block = BlockConfig(mixer=attention, mlp=mixture, norm=norm)
        scale = self.channels_per_head**-0.5

        def layer(reach: Reach) -> LayerConfig:
            rule = AttentionRule(scale, window=self.window if reach == "local" else None)
            return LayerConfig(block=block, rule=rule, rope=self.rope)

        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(layer(reach) for reach in reach_of_layers(self.pattern, self.n_layers)),
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )
