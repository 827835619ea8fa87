"""GPT-2."""

from typing import Literal

from ziggurat.core import config
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation, PlainMlpConfig
from ziggurat.nn.norm import NormConfig


@config.node
class Gpt2Config:
    """A pre-norm decoder with LayerNorm, learned positions, biases, and an MLP without a gate.

    Paper: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
    """

    kind: Literal["gpt2"] = "gpt2"
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
    activation: Activation = "gelu_tanh"
    """Function between the two matmuls of the feed-forward block."""
    max_sequence_length: int = 1024
    """Learned positions: the longest sequence in tokens."""
    scale_scores: bool = True
    """Divide scores by the root of the channels of a head."""
    scale_scores_by_layer: bool = False
    """Divide them by the number of the layer as well, from 1 on."""
    tie_embeddings: bool = True
    """One matrix for input embedding and output head."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "max_sequence_length"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        config.require(self.d_ff is None or self.d_ff >= 1, "d_ff", self.d_ff, "a number >= 1")
        divides = self.d_model % self.n_heads == 0
        config.require(divides, "d_model", self.d_model, f"a multiple of {self.n_heads} heads")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        head_dim = self.d_model // self.n_heads
        norm = NormConfig(kind="layer", eps=self.norm_eps)
        block = BlockConfig(
            mixer=GroupedAttentionConfig(
                heads=self.n_heads, kv_heads=self.n_heads, head_dim=head_dim, bias=True,
                out_bias=True,
            ),
            mlp=PlainMlpConfig(hidden=self.d_ff or 4 * self.d_model, activation=self.activation),
            norm=norm,
        )  # fmt: skip

        def layer(number: int) -> LayerConfig:
            scale = head_dim**-0.5 if self.scale_scores else 1.0
            scale /= number + 1 if self.scale_scores_by_layer else 1
            return LayerConfig(block=block, rule=AttentionRule(scale), rope=None)

        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(layer(number) for number in range(self.n_layers)),
            norm=norm,
            tie_embeddings=self.tie_embeddings,
            init_std=self.init_std,
            learned_positions=self.max_sequence_length,
        )
