"""DistilBERT: half of BERT's layers, without token types or pooler."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_heads import TransformConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.pooling import StatePoolerConfig


@config.node
class DistilBertConfig(TextEncoderFields):
    """BERT without token types and without a pooler.

    Paper: Sanh et al. 2019, https://arxiv.org/abs/1910.01108.
    """

    kind: Literal["distilbert"] = "distilbert"

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        config.require(self.norm_eps == 1e-12, "norm_eps", self.norm_eps, "1e-12, as all have it")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        return EncoderConfig(
            d_model=self.d_model,
            input=TokenInputConfig(
                vocab_size=self.vocab_size, positions=self.max_sequence_length, norm=self.norm()
            ),
            layers=self.plain_layers(norms="post"),
            pooler=StatePoolerConfig() if self.head == "sequence" else None,
            head=self.head_config(
                sequence=TransformConfig(activation="relu"),
                masked=TransformConfig(activation=self.activation, norm=self.norm()),
            ),
            init_std=self.init_std,
        )
