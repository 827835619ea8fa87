"""The Llama family: Llama 2 and 3.x, SmolLM2, Mistral (dense)."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation, GatedMlpConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class LlamaConfig:
    """A pre-norm decoder with RMSNorm, rotary positions, grouped keys and a gated MLP.

    Paper: Touvron et al. 2023, https://arxiv.org/abs/2307.09288; sliding window: Jiang et al. 2023,
    https://arxiv.org/abs/2310.06825.
    """

    kind: Literal["llama"] = "llama"
    vocab_size: int
    """Vocabulary entries."""
    d_model: int
    """Model width."""
    n_layers: int
    """Decoder blocks."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int | None = None
    """Key/value heads; default ``n_heads``."""
    head_dim: int | None = None
    """Channels of one head; default ``d_model / n_heads``."""
    d_ff: int | None = None
    """Feed-forward width; default ``8/3 d_model``, rounded up to a multiple of 64."""
    activation: Activation = "silu"
    """Gate function."""
    max_sequence_length: int = 2048
    """Longest sequence in tokens that serving allows."""
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Rotary position embedding."""
    window: int | None = None
    """Sliding attention window in tokens; default none."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward block."""
    tie_embeddings: bool = True
    """One matrix for input embedding and output head."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "max_sequence_length"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        for name in ("n_kv_heads", "head_dim", "d_ff", "window"):
            value = getattr(self, name)
            config.require(value is None or value >= 1, name, value, "a number >= 1")
        if self.head_dim is None:
            divides = self.d_model % self.n_heads == 0
            config.require(divides, "d_model", self.d_model, f"a multiple of {self.n_heads} heads")
        kv_heads = self.n_kv_heads or self.n_heads
        divides = self.n_heads % kv_heads == 0
        config.require(divides, "n_heads", self.n_heads, f"a multiple of {kv_heads} kv heads")
        dim = self.head_dim or self.d_model // self.n_heads
        config.require(dim % 2 == 0, "head_dim", dim, "an even number")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        head_dim = self.head_dim or self.d_model // self.n_heads
        norm = NormConfig(eps=self.norm_eps)
        block = BlockConfig(
            attention=GroupedAttentionConfig(
                heads=self.n_heads,
                kv_heads=self.n_kv_heads or self.n_heads,
                head_dim=head_dim,
                bias=self.attention_bias,
                out_bias=self.attention_bias,
            ),
            mlp=GatedMlpConfig(
                hidden=self.d_ff or 64 * -(-self.d_model * 8 // (3 * 64)),
                activation=self.activation,
                bias=self.mlp_bias,
            ),
            norm=norm,
        )
        rule = AttentionRule(head_dim**-0.5, window=self.window)
        layer = LayerConfig(block=block, rule=rule, rope=self.rope)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=(layer,) * self.n_layers,
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
        )
