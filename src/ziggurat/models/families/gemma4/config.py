"""Gemma 4 (text)."""

import dataclasses
import math
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import Reach, reach_of_layers
from ziggurat.models.families.mixture_fields import MixtureFields
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import ProportionalScaling, RopeConfig


@config.node
class Gemma4Config(MixtureFields):
    """Gemma 4: five local layers to a global one, whose heads are wider and fewer and share one
    projection for keys and values; scores are not scaled, and values have a norm.

    With ``sparse``, a mixture of experts stands beside every layer's feed-forward part.
    Source: https://ai.google.dev/gemma/docs/core/model_card_4.
    """

    kind: Literal["gemma4"] = "gemma4"
    head_dim: int = 256
    """Channels of one head of a local layer."""
    global_head_dim: int = 512
    """Channels of one head of a global layer."""
    n_global_kv_heads: int | None = None
    """Key/value heads of a global layer; default ``n_kv_heads``."""
    shared_key_value: bool = False
    """In global layers values are the keys before their norm and rotation."""
    activation: Activation = "gelu_tanh"
    """Gate function."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    rope: RopeConfig = dataclasses.field(
        default_factory=lambda: RopeConfig(theta=1e6, scaling=ProportionalScaling(share=0.25))
    )
    """Rotary position embedding of global layers."""
    local_rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Rotary position embedding of local layers."""
    window: int = 512
    """Tokens that local layers see."""
    pattern: tuple[Reach, ...] = ("local",) * 5 + ("global",)
    """Which layers see all (global) and which a window (local), repeated from the first on."""
    logit_softcap: float = 0.0
    """Bound on the logits, ``cap * tanh(logits / cap)``; 0: none."""
    sparse: bool = False
    """A mixture of experts stands beside every layer's feed-forward part."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.window >= 1, "window", self.window, "a number >= 1")
        config.require(len(self.pattern) >= 1, "pattern", self.pattern, "at least one entry")
        cap = self.logit_softcap
        config.require(cap >= 0, "logit_softcap", cap, "a number > 0, or 0 for none")
        dim, heads = self.global_head_dim, self.n_global_kv_heads
        config.require(dim >= 2 and dim % 2 == 0, "global_head_dim", dim, "an even number >= 2")
        divides = heads is None or (heads >= 1 and self.n_heads % heads == 0)
        config.require(divides, "n_global_kv_heads", heads, f"a divisor of {self.n_heads} heads")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(eps=self.norm_eps)
        bias = self.attention_bias
        local = self.attention(
            bias=bias, out_bias=bias, head_norm=norm, value_norm_eps=self.norm_eps
        )
        every = dataclasses.replace(
            local,
            kv_heads=self.n_global_kv_heads or local.kv_heads,
            head_dim=self.global_head_dim,
            value_is_key=self.shared_key_value,
        )
        kinds = {
            "local": LayerConfig(
                block=self._block(local, norm),
                rule=AttentionRule(1.0, self.window),
                rope=self.local_rope,
            ),
            "global": LayerConfig(
                block=self._block(every, norm), rule=AttentionRule(1.0), rope=self.rope
            ),
        }
        return self.decoder_of(
            [kinds[reach] for reach in reach_of_layers(self.pattern, self.n_layers)],
            embedding_scale=math.sqrt(self.d_model),
            logit_softcap=self.logit_softcap or None,
        )

    def _block(self, attention: GroupedAttentionConfig, norm: NormConfig) -> BlockConfig:
        mlp = self.mlp()
        if self.sparse:
            router = {"input_norm_eps": self.norm_eps, "expert_scale": True}
            mlp = dataclasses.replace(self.mixture(shared=mlp.hidden, **router), branch_norms=norm)
        return BlockConfig(
            mixer=attention,
            mlp=mlp,
            norm=norm,
            norms="sandwich",
            mlp_norm=not self.sparse,
            stream_scale=True,
        )
