"""Gemma 1, Gemma 2 and Gemma 3 (text)."""

import dataclasses
import math
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields, Reach, reach_of_layers
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class GemmaConfig(DecoderFields):
    """Gemma 1: a Llama-like decoder with scales of norms stored around zero, and embeddings
    multiplied by the root of the width.

    Paper: Mesnard et al. 2024, https://arxiv.org/abs/2403.08295.
    """

    kind: Literal["gemma"] = "gemma"
    head_dim: int = 256
    """Channels of one head."""
    activation: Activation = "gelu_tanh"
    """Gate function."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        bias = self.attention_bias
        block = BlockConfig(
            mixer=self.attention(bias=bias, out_bias=bias),
            mlp=self.mlp(),
            norm=NormConfig(eps=self.norm_eps, offset=1.0),
        )
        return self.decoder_of(self.alike(block), embedding_scale=math.sqrt(self.d_model))


@config.node
class GemmaFields(DecoderFields):
    """Config fields that Gemma 2 and Gemma 3 share.

    Norms stand before and after each half of a block, with scales stored around zero, and
    embeddings are multiplied by the root of the width.
    """

    head_dim: int = 256
    """Channels of one head."""
    activation: Activation = "gelu_tanh"
    """Gate function."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    query_scale: float = 256.0
    """Scores are divided by the root of this (``query_pre_attn_scalar``)."""
    window: int = 4096
    """Tokens that local layers see."""
    pattern: tuple[Reach, ...]
    """Which layers see all (global) and which a window (local), repeated from the first on."""
    logit_softcap: float = 0.0
    """Bound on the logits, ``cap * tanh(logits / cap)``; 0: none."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("window", "query_scale"):
            value = getattr(self, name)
            config.require(value > 0, name, value, "a number > 0")
        config.require(len(self.pattern) >= 1, "pattern", self.pattern, "at least one entry")
        cap = self.logit_softcap
        config.require(cap >= 0, "logit_softcap", cap, "a number > 0, or 0 for none")

    def _decoder(self, local: RopeConfig, softcap: float | None, head_norm: bool) -> DecoderConfig:
        norm = NormConfig(eps=self.norm_eps, offset=1.0)
        bias = self.attention_bias
        attention = self.attention(bias=bias, out_bias=bias, head_norm=norm if head_norm else None)
        block = BlockConfig(mixer=attention, mlp=self.mlp(), norm=norm, norms="sandwich")
        scale = self.query_scale**-0.5
        kinds = {
            "local": LayerConfig(
                block=block, rule=AttentionRule(scale, self.window, softcap), rope=local
            ),
            "global": LayerConfig(
                block=block, rule=AttentionRule(scale, softcap=softcap), rope=self.rope
            ),
        }
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(kinds[reach] for reach in reach_of_layers(self.pattern, self.n_layers)),
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
            embedding_scale=math.sqrt(self.d_model),
            logit_softcap=self.logit_softcap or None,
        )


@config.node
class Gemma2Config(GemmaFields):
    """Gemma 2: local and global layers in turn, scores and logits bounded softly.

    Paper: Riviere et al. 2024, https://arxiv.org/abs/2408.00118.
    """

    kind: Literal["gemma2"] = "gemma2"
    pattern: tuple[Reach, ...] = ("local", "global")
    """Which layers see all (global) and which a window (local), repeated from the first on."""
    attention_softcap: float = 50.0
    """Bound on the scores; 0: none."""
    logit_softcap: float = 30.0
    """Bound on the logits; 0: none."""

    def __post_init__(self):
        super().__post_init__()
        cap = self.attention_softcap
        config.require(cap >= 0, "attention_softcap", cap, "a number > 0, or 0 for none")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self._decoder(self.rope, self.attention_softcap or None, head_norm=False)


@config.node
class Gemma3Config(GemmaFields):
    """Gemma 3: five local layers to a global one, each with its own rotary base, and a norm over
    each head of queries and keys.

    Paper: Kamath et al. 2025, https://arxiv.org/abs/2503.19786.
    """

    kind: Literal["gemma3"] = "gemma3"
    rope: RopeConfig = dataclasses.field(default_factory=lambda: RopeConfig(theta=1e6))
    """Rotary position embedding of global layers."""
    local_rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Rotary position embedding of local layers."""
    window: int = 1024
    """Tokens that local layers see."""
    pattern: tuple[Reach, ...] = ("local",) * 5 + ("global",)
    """Which layers see all (global) and which a window (local), repeated from the first on."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        return self._decoder(self.local_rope, None, head_norm=True)
