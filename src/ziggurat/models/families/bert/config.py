"""BERT and its relatives of the same form, such as MiniLM."""

from typing import Literal

from ziggurat.core import config
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.mlp import Activation, PlainMlpConfig
from ziggurat.nn.norm import NormConfig


@config.node
class BertConfig:
    """An encoder with learned positions, token types, and norms after each half of a block.

    Paper: Devlin et al. 2019, https://arxiv.org/abs/1810.04805; MiniLM: Wang et al. 2020,
    https://arxiv.org/abs/2002.10957.
    """

    kind: Literal["bert"] = "bert"
    vocab_size: int
    """Vocabulary entries."""
    d_model: int
    """Model width."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Heads."""
    d_ff: int | None = None
    """Feed-forward width; default ``4 d_model``."""
    activation: Activation = "gelu"
    """Function between the two matmuls of the feed-forward block."""
    max_sequence_length: int = 512
    """Learned positions: the longest sequence in tokens."""
    token_types: int = 2
    """Kinds of token, which tell a first text from a second."""
    pooler: bool = True
    """A layer over the first token's state."""
    norm_eps: float = 1e-12
    """Added to the variance in norms."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for name in (
            "vocab_size", "d_model", "n_layers", "n_heads", "max_sequence_length", "token_types",
        ):  # fmt: skip
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        config.require(self.d_ff is None or self.d_ff >= 1, "d_ff", self.d_ff, "a number >= 1")
        divides = self.d_model % self.n_heads == 0
        config.require(divides, "d_model", self.d_model, f"a multiple of {self.n_heads} heads")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        heads, head_dim = self.n_heads, self.d_model // self.n_heads
        block = BlockConfig(
            mixer=GroupedAttentionConfig(
                heads=heads, kv_heads=heads, head_dim=head_dim, bias=True, out_bias=True
            ),
            mlp=PlainMlpConfig(hidden=self.d_ff or 4 * self.d_model, activation=self.activation),
            norm=NormConfig(kind="layer", eps=self.norm_eps),
            norms="post",
        )
        return EncoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            n_layers=self.n_layers,
            block=block,
            rule=AttentionRule(head_dim**-0.5),
            positions=self.max_sequence_length,
            token_types=self.token_types,
            pooler=self.pooler,
            init_std=self.init_std,
        )
