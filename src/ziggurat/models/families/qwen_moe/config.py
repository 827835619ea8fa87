"""Qwen 2 and 3 with mixtures of experts."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import Reach, reach_of_layers
from ziggurat.models.families.mixture_fields import SparseLayerFields
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig, MlpConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class QwenMoeFields(SparseLayerFields):
    """Config fields that Qwen 2 and Qwen 3 with mixtures of experts share."""

    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1e6))
    """Rotary position embedding."""
    window: int | None = None
    """Sliding attention window in tokens; default none."""

    def __post_init__(self):
        super().__post_init__()
        fits = self.window is None or self.window >= 1
        config.require(fits, "window", self.window, "a number >= 1")

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """Reach of each layer's attention: all earlier tokens, or the window."""
        return ("global" if self.window is None else "local",) * self.n_layers

    def _decoder(
        self, attention: GroupedAttentionConfig, mixture: MixtureOfExpertsConfig
    ) -> DecoderConfig:
        norm, scale = NormConfig(eps=self.norm_eps), self.channels_per_head**-0.5

        def layer(mlp: MlpConfig, reach: Reach) -> LayerConfig:
            rule = AttentionRule(scale, window=self.window if reach == "local" else None)
            block = BlockConfig(mixer=attention, mlp=mlp, norm=norm)
            return LayerConfig(block=block, rule=rule, rope=self.rope)

        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(
                layer(mixture if self.is_sparse(i) else self.mlp(), reach)
                for i, reach in enumerate(self.reaches)
            ),
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )


@config.node
class Qwen2MoeConfig(QwenMoeFields):
    """Qwen 2's attention, and mixtures of experts with a gated shared one.

    Paper: Yang et al. 2024, https://arxiv.org/abs/2407.10671.
    """

    kind: Literal["qwen2_moe"] = "qwen2_moe"
    d_ff_shared: int = 5632
    """Feed-forward width of the shared expert."""
    normalise_weights: bool = False
    """The weights of the chosen experts sum to one."""
    attention_bias: bool = True
    """Biases on query, key and value."""
    pattern: tuple[Reach, ...] | None = None
    """Which layers see all (global) and which the window (local), repeated from the first on;
    default: all the window where there is one."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.d_ff_shared >= 1, "d_ff_shared", self.d_ff_shared, "a number >= 1")
        slides = self.window is not None
        fits = self.pattern is None or (bool(self.pattern) and ("local" in self.reaches) == slides)
        config.require(fits, "pattern", self.pattern, "local layers just where there is a window")

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """Reach of each layer's attention: all earlier tokens, or the window."""
        if self.pattern is None:
            return super().reaches
        return reach_of_layers(self.pattern, self.n_layers)

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        mixture = self.mixture(
            shared=self.d_ff_shared, shared_gate=True, normalise=self.normalise_weights
        )
        return self._decoder(self.attention(bias=self.attention_bias), mixture)


@config.node
class Qwen3MoeConfig(QwenMoeFields):
    """Qwen 3's attention, with mixtures of experts in all or some layers.

    Paper: Yang et al. 2025, https://arxiv.org/abs/2505.09388.
    """

    kind: Literal["qwen3_moe"] = "qwen3_moe"
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm, bias = NormConfig(eps=self.norm_eps), self.attention_bias
        attention = self.attention(bias=bias, out_bias=bias, head_norm=norm)
        return self._decoder(attention, self.mixture(normalise=self.normalise_weights))
