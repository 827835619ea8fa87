"""Qwen3-Next, and Qwen 3.5 with and without mixtures of experts."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.models.families.mixture_fields import MixtureFields, SparseLayerFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig, MixerConfig, MlpConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.gated_delta_net import GatedDeltaNetConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig

Mixer = Literal["linear", "full"]
"""Whether a layer is a gated delta net or attention."""


@config.node
class HybridFields(DecoderFields):
    """Config fields of decoders in which most layers are gated delta nets and some attention."""

    head_dim: int = 256
    """Channels of one attention head."""
    rotary_dim: int = 64
    """First channels of an attention head that rotate."""
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1e7))
    """Rotary position embedding."""
    attention_bias: bool = False
    """Biases on the projections of attention."""
    pattern: tuple[Mixer, ...] = ("linear", "linear", "linear", "full")
    """Which layers are gated delta nets (linear) and which attention (full), repeated from the
    first on."""
    delta_key_heads: int = 16
    """Heads of keys in a gated delta net."""
    delta_value_heads: int = 32
    """Heads of values, a multiple of ``delta_key_heads``."""
    delta_key_dim: int = 128
    """Channels of one key of a gated delta net."""
    delta_value_dim: int = 128
    """Channels of one value of a gated delta net."""
    delta_taps: int = 4
    """Tokens that the convolutions of a gated delta net see."""

    def __post_init__(self):
        super().__post_init__()
        dim, most = self.rotary_dim, self.head_dim
        fits = dim % 2 == 0 and 2 <= dim <= most
        config.require(fits, "rotary_dim", dim, f"an even number, 2 to head_dim = {most}")
        config.require(len(self.pattern) >= 1, "pattern", self.pattern, "at least one entry")
        for name in ("delta_key_heads", "delta_key_dim", "delta_value_dim", "delta_taps"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        heads, keys = self.delta_value_heads, self.delta_key_heads
        divides = heads >= 1 and heads % keys == 0
        config.require(divides, "delta_value_heads", heads, f"a multiple of {keys} key heads")
        sections, turns = self.rope.sections, dim // 2
        fits = not sections or sum(sections) == turns
        config.require(fits, "rope.sections", sections, f"{turns} frequencies together")

    def mixers(self) -> tuple[Mixer, ...]:
        """The mixer of each layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.n_layers))

    def mlp_of(self, layer: int) -> MlpConfig:
        """Feed-forward part of a layer (from 0)."""
        return self.mlp()

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps, offset=1.0)
        kinds: dict[Mixer, MixerConfig] = {
            "full": self.attention(
                bias=self.attention_bias,
                out_bias=self.attention_bias,
                head_norm=norm,
                rotary_dim=self.rotary_dim,
                output_gate=True,
            ),
            "linear": GatedDeltaNetConfig(
                key_heads=self.delta_key_heads,
                value_heads=self.delta_value_heads,
                key_dim=self.delta_key_dim,
                value_dim=self.delta_value_dim,
                taps=self.delta_taps,
                norm_eps=self.norm_eps,
                activation=self.activation,
            ),
        }
        rule = AttentionRule(self.channels_per_head**-0.5)
        layers = tuple(
            LayerConfig(
                block=BlockConfig(mixer=kinds[kind], mlp=self.mlp_of(number), norm=norm),
                rule=rule,
                rope=self.rope if kind == "full" else None,
            )
            for number, kind in enumerate(self.mixers())
        )
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=layers,
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )


@config.node
class Qwen3NextConfig(HybridFields, SparseLayerFields):
    """Qwen3-Next: three gated delta nets for each layer of gated attention, and mixtures of many
    small experts with a gated shared one.

    Source: Qwen team 2025, https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct.
    """

    kind: Literal["qwen3_next"] = "qwen3_next"
    d_ff_shared: int = 512
    """Feed-forward width of the shared expert."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.d_ff_shared >= 1, "d_ff_shared", self.d_ff_shared, "a number >= 1")

    def mlp_of(self, layer: int) -> MlpConfig:
        """Feed-forward part of a layer (from 0)."""
        if not self.is_sparse(layer):
            return self.mlp()
        weights = self.normalise_weights
        return self.mixture(shared=self.d_ff_shared, shared_gate=True, normalise=weights)


@config.node
class Qwen35Config(HybridFields):
    """Qwen 3.5 and 3.6, dense: the text model.

    Source: Qwen team 2026, https://huggingface.co/Qwen/Qwen3.5-27B.
    """

    kind: Literal["qwen3_5"] = "qwen3_5"


@config.node
class Qwen35MoeConfig(HybridFields, MixtureFields):
    """Qwen 3.5 and 3.6 with mixtures of experts in every layer: the text model.

    Source: Qwen team 2026, https://huggingface.co/Qwen/Qwen3.5-35B-A3B.
    """

    kind: Literal["qwen3_5_moe"] = "qwen3_5_moe"
    d_ff_shared: int = 512
    """Feed-forward width of the shared expert."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.d_ff_shared >= 1, "d_ff_shared", self.d_ff_shared, "a number >= 1")
        config.require(self.d_ff is None, "d_ff", self.d_ff, "none, as no layer is dense")

    def mlp_of(self, layer: int) -> MlpConfig:
        """Feed-forward part of a layer (from 0)."""
        return self.mixture(shared=self.d_ff_shared, shared_gate=True)
