"""DeepSeek-V2, V3 and R1."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

from ziggurat.core import config
from ziggurat.models.families.mixture_fields import check_groups
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig, MlpConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.latent_attention import LatentAttentionConfig
from ziggurat.nn.mlp import Activation, GatedMlpConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig, YarnScaling
from ziggurat.nn.router import RouterConfig

LATENT_NORM_EPS = 1e-6
"""Epsilon of the norms of compressed vectors; ``norm_eps`` does not change it."""


@config.node
class DeepseekFields:
    """Config fields that DeepSeek-V2 and V3 share."""

    least_group: ClassVar[int] = 2
    """Experts that a group must have, as its two best say how good it is."""

    vocab_size: int
    """Vocabulary entries."""
    d_model: int
    """Model width."""
    n_layers: int
    """Decoder blocks."""
    n_heads: int
    """Attention heads."""
    query_latent: int | None = None
    """Width of the compressed query; default: queries come from the stream directly."""
    latent: int
    """Width of the compressed key and value, which is what a cache holds."""
    plain_dim: int
    """Channels of a head's query and key that do not rotate."""
    rotary_dim: int
    """Channels that do; their key is shared by all heads."""
    value_dim: int
    """Channels of a head's value."""
    d_ff: int
    """Feed-forward width of dense layers."""
    d_ff_expert: int
    """Feed-forward width of one expert."""
    n_dense_layers: int = 1
    """Layers at the beginning that are dense."""
    n_experts: int
    """Routed experts of each sparse layer."""
    experts_per_token: int
    """Routed experts each token is sent to."""
    n_shared_experts: int = 1
    """Experts that every token goes through, as one block of that many times ``d_ff_expert``."""
    n_groups: int = 1
    """Equal groups of experts."""
    groups_per_token: int = 1
    """Groups whose experts a token may be sent to."""
    routed_scale: float = 1.0
    """Multiplies the weights of the chosen experts."""
    activation: Activation = "silu"
    """Gate function."""
    max_sequence_length: int = 4096
    """Longest sequence in tokens that serving allows."""
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Rotary position embedding."""
    attention_bias: bool = False
    """Biases on the projections into compressed vectors and on the output."""
    tie_embeddings: bool = False
    """One matrix for input embedding and output head."""
    norm_eps: float = 1e-6
    """Added to the mean square in norms."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "n_dense_layers" else 1
            if isinstance(value, int) and not isinstance(value, bool):
                config.require(value >= least, field.name, value, f"a number >= {least}")
        config.require(self.rotary_dim % 2 == 0, "rotary_dim", self.rotary_dim, "an even number")
        check_groups(
            self.n_experts,
            self.n_groups,
            self.groups_per_token,
            self.experts_per_token,
            self.least_group,
        )

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores; a YaRN scaling with ``mscale_all_dim`` raises it."""
        scale, scaling = (self.plain_dim + self.rotary_dim) ** -0.5, self.rope.scaling
        if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim and scaling.factor > 1:
            scale *= (0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1.0) ** 2
        return scale

    def _decoder(self, **router: Any) -> DecoderConfig:
        norm = NormConfig(eps=self.norm_eps)
        mixture = self._mixture(**router)
        attention = LatentAttentionConfig(
            heads=self.n_heads,
            query_latent=self.query_latent,
            latent=self.latent,
            plain_dim=self.plain_dim,
            rotary_dim=self.rotary_dim,
            value_dim=self.value_dim,
            norm=NormConfig(eps=LATENT_NORM_EPS),
            bias=self.attention_bias,
        )
        rule = AttentionRule(self.attention_scale)

        def layer(mlp: MlpConfig) -> LayerConfig:
            block = BlockConfig(mixer=attention, mlp=mlp, norm=norm)
            return LayerConfig(block=block, rule=rule, rope=self.rope)

        dense = min(self.n_dense_layers, self.n_layers)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=(layer(self._gated(self.d_ff)),) * dense
            + (layer(mixture),) * (self.n_layers - dense),
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )

    def _gated(self, hidden: int) -> GatedMlpConfig:
        return GatedMlpConfig(hidden=hidden, activation=self.activation)

    def _mixture(self, **router: Any) -> MixtureOfExpertsConfig:
        return MixtureOfExpertsConfig(
            router=RouterConfig(
                experts=self.n_experts,
                chosen=self.experts_per_token,
                scale=self.routed_scale,
                groups=self.n_groups,
                chosen_groups=self.groups_per_token,
                **router,
            ),
            hidden=self.d_ff_expert,
            activation=self.activation,
            shared=self._gated(self.d_ff_expert * self.n_shared_experts),
        )


@config.node
class DeepseekV2Config(DeepseekFields):
    """Multi-head latent attention, and after some dense layers mixtures of many small experts with
    shared ones, behind a softmax router.

    Paper: DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434.
    """

    kind: Literal["deepseek_v2"] = "deepseek_v2"
    least_group: ClassVar[int] = 1
    """Least experts of a group: those whose scores rank the group."""
    interleaved_rope: ClassVar[bool] = True
    """Published weights hold rotary channels in pairs; here they are in halves."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self._decoder(normalise=False, group_score="best")


@config.node
class DeepseekV3Config(DeepseekFields):
    """Multi-head latent attention, and after some dense layers mixtures of many small experts with
    a shared one, behind a sigmoid router whose correction balances the experts.

    Paper: DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437.
    """

    kind: Literal["deepseek_v3"] = "deepseek_v3"
    normalise_weights: bool = True
    """The weights of the chosen experts sum to one before they are scaled."""
    interleaved_rope: bool = True
    """Published weights hold rotary channels in pairs; here they are in halves."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self._decoder(scores="sigmoid", normalise=self.normalise_weights, correction=True)
