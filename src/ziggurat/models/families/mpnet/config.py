"""MPNet: learned positions and a bias on scores by distance."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_heads import TransformConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.pooling import StatePoolerConfig
from ziggurat.nn.relative_positions import RelativePositionsConfig

PADDING_ID = 1
"""Token id that has no position of its own, whatever the tokenizer pads with."""


@config.node
class MPNetConfig(TextEncoderFields):
    """RoBERTa without token types, with a bias on scores by distance that all layers share.

    Paper: Song et al. 2020, https://arxiv.org/abs/2004.09297.
    """

    kind: Literal["mpnet"] = "mpnet"
    relative_positions: int = 32
    """Rows of the table of biases by distance; 32 are used."""
    pooler: bool = True
    """A layer over the first token's state."""

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        rows = self.relative_positions
        config.require(rows >= 32, "relative_positions", rows, "at least 32")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        dense = StatePoolerConfig(dense=self.d_model, activation="tanh")
        first = StatePoolerConfig() if self.head == "sequence" else None
        return EncoderConfig(
            d_model=self.d_model,
            input=TokenInputConfig(
                vocab_size=self.vocab_size,
                positions=self.max_sequence_length + PADDING_ID + 1,
                padding_id=PADDING_ID,
                norm=self.norm(),
            ),
            layers=self.plain_layers(norms="post"),
            relative_positions=RelativePositionsConfig(
                heads=self.n_heads, rows=self.relative_positions
            ),
            pooler=dense if self.pooler and self.head != "sequence" else first,
            head=self.head_config(
                sequence=TransformConfig(activation="tanh"),
                masked=TransformConfig(activation="gelu", norm=self.norm()),
            ),
            init_std=self.init_std,
        )
