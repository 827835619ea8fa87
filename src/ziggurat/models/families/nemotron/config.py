"""Nemotron-4 and Minitron."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import PartialRotaryFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig


@config.node
class NemotronConfig(PartialRotaryFields):
    """A decoder with LayerNorm whose scales are stored around zero, half of whose channels rotate,
    and whose feed-forward block squares its ReLU.

    Paper: Parmar et al. 2024, https://arxiv.org/abs/2402.16819.
    """

    kind: Literal["nemotron"] = "nemotron"
    activation: Activation = "relu2"
    """Function between the two matmuls of the feed-forward block."""
    partial_rotary_factor: float = 0.5
    """Share of a head's channels that rotate, the first ones."""
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward block."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        bias = self.attention_bias
        block = BlockConfig(
            mixer=self.attention(bias=bias, out_bias=bias, rotary_dim=self.rotary_dim),
            mlp=self.plain_mlp(self.mlp_bias),
            norm=NormConfig(kind="layer", eps=self.norm_eps, offset=1.0),
        )
        return self.decoder_of(self.alike(block))
