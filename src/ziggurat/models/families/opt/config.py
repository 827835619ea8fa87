"""OPT."""

from typing import Literal

from ziggurat.core import config
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation, PlainMlpConfig
from ziggurat.nn.norm import NormConfig

UNUSED_POSITIONS = 2
"""Rows of the table of positions before the first position's: those of padding in fairseq."""


@config.node
class OptConfig:
    """A decoder with LayerNorm, learned positions, biases and ReLU.

    Paper: Zhang et al. 2022, https://arxiv.org/abs/2205.01068.
    """

    kind: Literal["opt"] = "opt"
    vocab_size: int
    """Vocabulary entries."""
    d_model: int
    """Model width."""
    n_layers: int
    """Decoder blocks."""
    n_heads: int
    """Heads."""
    d_ff: int | None = None
    """Feed-forward width; default ``4 d_model``."""
    activation: Activation = "relu"
    """Function between the two matmuls of the feed-forward block."""
    max_sequence_length: int = 2048
    """Learned positions: the longest sequence in tokens."""
    embedding_width: int | None = None
    """Width of the embeddings, which a matrix leads to ``d_model``; default ``d_model``."""
    pre_norm: bool = True
    """Norms stand before each half of a block; otherwise behind it (OPT-350M)."""
    final_norm: bool = True
    """A norm behind the last block; only with norms before each half."""
    bias: bool = True
    """Biases on all projections."""
    tie_embeddings: bool = True
    """One matrix for input embedding and output head."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "max_sequence_length"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        for name in ("d_ff", "embedding_width"):
            value = getattr(self, name)
            config.require(value is None or value >= 1, name, value, "a number >= 1")
        divides = self.d_model % self.n_heads == 0
        config.require(divides, "d_model", self.d_model, f"a multiple of {self.n_heads} heads")
        allowed = self.pre_norm or not self.final_norm
        config.require(allowed, "final_norm", self.final_norm, "false, as pre_norm is")

    @property
    def mlp(self) -> PlainMlpConfig:
        """The feed-forward part of every block."""
        hidden = self.d_ff or 4 * self.d_model
        return PlainMlpConfig(hidden=hidden, activation=self.activation, bias=self.bias)

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        head_dim, heads = self.d_model // self.n_heads, self.n_heads
        norm = NormConfig(kind="layer", eps=1e-5)
        block = BlockConfig(
            mixer=GroupedAttentionConfig(
                heads=heads, kv_heads=heads, head_dim=head_dim, bias=self.bias, out_bias=self.bias
            ),
            mlp=self.mlp,
            norm=norm,
            norms="pre" if self.pre_norm else "post",
        )
        layer = LayerConfig(block=block, rule=AttentionRule(head_dim**-0.5), rope=None)
        narrow = self.embedding_width not in (None, self.d_model)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=(layer,) * self.n_layers,
            norm=norm,
            final_norm=self.final_norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
            learned_positions=self.max_sequence_length + UNUSED_POSITIONS,
            unused_positions=UNUSED_POSITIONS,
            embedding_width=self.embedding_width if narrow else None,
        )
