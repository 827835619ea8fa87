"""Granite 3 (dense)."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.decoder import DecoderConfig
from ziggurat.nn.norm import NormConfig


@config.node
class GraniteConfig(DecoderFields):
    """A Llama-like decoder with multipliers on embeddings, scores, branches and logits.

    Papers: Granite Team 2024, "Granite 3.0 Language Models"; multipliers: Yang et al. 2022 (muP),
    https://arxiv.org/abs/2203.03466.
    """

    kind: Literal["granite"] = "granite"
    attention_bias: bool = False
    """Biases on query, key, value and output projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward block."""
    embedding_multiplier: float = 1.0
    """Multiplies the embeddings."""
    attention_multiplier: float = 1.0
    """Multiplies the scores, in place of one through the root of a head's channels."""
    residual_multiplier: float = 1.0
    """Multiplies what each half of a block adds."""
    logits_scaling: float = 1.0
    """Divides the logits."""

    def __post_init__(self):
        super().__post_init__()
        scaling = self.logits_scaling
        config.require(scaling != 0, "logits_scaling", scaling, "a number other than 0")

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        bias = self.attention_bias
        block = BlockConfig(
            mixer=self.attention(bias=bias, out_bias=bias),
            mlp=self.mlp(self.mlp_bias),
            norm=NormConfig(eps=self.norm_eps),
            residual_scale=self.residual_multiplier,
        )
        return self.decoder_of(
            self.alike(block, self.attention_multiplier),
            embedding_scale=self.embedding_multiplier,
            logit_scale=1.0 / self.logits_scaling,
        )
