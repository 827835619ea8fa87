"""Phi-1, Phi-1.5 and Phi-2."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import PartialRotaryFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig


@config.node
class PhiConfig(PartialRotaryFields):
    """A decoder whose attention and feed-forward part read one LayerNorm in parallel, with biases
    everywhere and one on the logits.

    Paper: Li et al. 2023, https://arxiv.org/abs/2309.05463.
    """

    kind: Literal["phi"] = "phi"
    activation: Activation = "gelu_tanh"
    """Function between the two matmuls of the feed-forward block."""
    partial_rotary_factor: float = 0.5
    """Share of a head's channels that rotate, the first ones."""
    head_norm: bool = False
    """A norm over each head of queries and keys."""
    tie_embeddings: bool = False
    """One matrix for input embedding and output head."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        norm = NormConfig(kind="layer", eps=self.norm_eps)
        block = BlockConfig(
            mixer=self.attention(
                bias=True,
                out_bias=True,
                rotary_dim=self.rotary_dim,
                head_norm=norm if self.head_norm else None,
            ),
            mlp=self.plain_mlp(bias=True),
            norm=norm,
            parallel=True,
            shared_norm=True,
        )
        return self.decoder_of(self.alike(block), head_bias=True)
