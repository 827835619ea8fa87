"""Arcee's foundation models (AFM)."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig


@config.node
class ArceeConfig(DecoderFields):
    """A Llama-like decoder whose feed-forward block has no gate and squares its ReLU.

    Papers: Arcee AI 2025,
    https://www.arcee.ai/blog;
    squared ReLU: So et al. 2021, https://arxiv.org/abs/2109.08668.
    """

    kind: Literal["arcee"] = "arcee"
    activation: Activation = "relu2"
    """Function between the two matmuls of the feed-forward block."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward block."""
    norm_eps: float = 1e-5
    """Added to the mean square in norms."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        bias = self.attention_bias
        block = BlockConfig(
            mixer=self.attention(bias=bias, out_bias=bias),
            mlp=self.plain_mlp(self.mlp_bias),
            norm=NormConfig(eps=self.norm_eps),
        )
        return self.decoder_of(self.alike(block))
