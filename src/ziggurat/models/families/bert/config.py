"""BERT and its relatives of the same form, such as MiniLM."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_heads import TransformConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.pooling import StatePoolerConfig


@config.node
class BertConfig(TextEncoderFields):
    """An encoder with learned positions, token types, and norms after each half of a block.

    Paper: Devlin et al. 2019, https://arxiv.org/abs/1810.04805; MiniLM: Wang et al. 2020,
    https://arxiv.org/abs/2002.10957.
    """

    kind: Literal["bert"] = "bert"
    token_types: int = 2
    """Kinds of token, which tell a first text from a second."""
    pooler: bool = True
    """A layer over the first token's state."""

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        config.require(self.token_types >= 1, "token_types", self.token_types, "a number >= 1")
        reads = self.head != "sequence" or self.pooler
        config.require(reads, "pooler", self.pooler, "true: the head of texts reads it")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        pooler = StatePoolerConfig(dense=self.d_model, activation="tanh")
        return EncoderConfig(
            d_model=self.d_model,
            input=TokenInputConfig(
                vocab_size=self.vocab_size,
                positions=self.max_sequence_length,
                token_types=self.token_types,
                norm=self.norm(),
            ),
            layers=self.plain_layers(norms="post"),
            pooler=pooler if self.pooler else None,
            head=self.head_config(
                masked=TransformConfig(activation=self.activation, norm=self.norm())
            ),
            init_std=self.init_std,
        )
