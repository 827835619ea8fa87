"""RoBERTa, and models of the same form in other languages."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_heads import TransformConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.pooling import StatePoolerConfig


@config.node
class RobertaConfig(TextEncoderFields):
    """BERT with positions that begin behind that of padding, and heads of its own.

    Papers: Liu et al. 2019, https://arxiv.org/abs/1907.11692; XLM-R: Conneau et al. 2020,
    https://arxiv.org/abs/1911.02116.
    """

    kind: Literal["roberta"] = "roberta"
    variant: Literal["roberta", "xlm-roberta", "camembert"] = "roberta"
    """Name under which transformers has it; nothing else differs."""
    token_types: int = 1
    """Kinds of token, which tell a first text from a second."""
    padding_id: int = 1
    """Token id that has no position of its own: positions begin with the next number."""
    pooler: bool = True
    """A layer over the first token's state."""

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        config.require(self.token_types >= 1, "token_types", self.token_types, "a number >= 1")
        config.require(self.padding_id >= 0, "padding_id", self.padding_id, "a number >= 0")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        dense = StatePoolerConfig(dense=self.d_model, activation="tanh")
        first = StatePoolerConfig() if self.head == "sequence" else None
        return EncoderConfig(
            d_model=self.d_model,
            input=TokenInputConfig(
                vocab_size=self.vocab_size,
                positions=self.max_sequence_length + self.padding_id + 1,
                padding_id=self.padding_id,
                token_types=self.token_types,
                norm=self.norm(),
            ),
            layers=self.plain_layers(norms="post"),
            pooler=dense if self.pooler and self.head != "sequence" else first,
            head=self.head_config(
                sequence=TransformConfig(activation="tanh"),
                masked=TransformConfig(activation="gelu", norm=self.norm()),
            ),
            init_std=self.init_std,
        )
