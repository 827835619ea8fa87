"""GPT-NeoX and Pythia."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import PartialRotaryFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.norm import NormConfig


@config.node
class GPTNeoXConfig(PartialRotaryFields):
    """A decoder whose attention and feed-forward part are parallel, each with its own LayerNorm.

    Paper: Black et al. 2022, https://arxiv.org/abs/2204.06745.
    """

    kind: Literal["gpt_neox"] = "gpt_neox"
    activation: Activation = "gelu"
    """Function between the two matmuls of the feed-forward block."""
    partial_rotary_factor: float = 0.25
    """Share of a head's channels that rotate, the first ones."""
    parallel: bool = True
    """Attention and feed-forward part both read the block's input."""
    attention_bias: bool = True
    """Biases on query, key, value and output projections."""
    tie_embeddings: bool = False
    """One matrix for input embedding and output head."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        bias = self.attention_bias
        block = BlockConfig(
            mixer=self.attention(bias=bias, out_bias=bias, rotary_dim=self.rotary_dim),
            mlp=self.plain_mlp(bias=True),
            norm=NormConfig(kind="layer", eps=self.norm_eps),
            parallel=self.parallel,
        )
        return self.decoder_of(self.alike(block))
