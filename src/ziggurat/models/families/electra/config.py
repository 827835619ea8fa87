"""ELECTRA."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_heads import LogitHeadConfig, TransformConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.pooling import StatePoolerConfig


@config.node
class ElectraConfig(TextEncoderFields):
    """BERT with embeddings of a width of their own, without a pooler, with heads of its own.

    Paper: Clark et al. 2020, https://arxiv.org/abs/2003.10555.
    """

    kind: Literal["electra"] = "electra"
    embedding_width: int = 128
    """Width of the embeddings; where it is not ``d_model``, a layer leads from one to the other."""
    token_types: int = 2
    """Kinds of token, which tell a first text from a second."""

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        for name in ("embedding_width", "token_types"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")

    @property
    def projects(self) -> bool:
        """Whether embeddings have another width than states."""
        return self.embedding_width != self.d_model

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        masked = TransformConfig(activation="gelu", norm=self.norm(), outputs=self.embedding_width)
        head = self.head_config(sequence=TransformConfig(activation="gelu"), masked=masked)
        if self.head == "replaced":
            own = TransformConfig(activation=self.activation)
            head = LogitHeadConfig(reads="states", outputs=1, transform=own)
        return EncoderConfig(
            d_model=self.d_model,
            input=TokenInputConfig(
                vocab_size=self.vocab_size,
                embedding_width=self.embedding_width if self.projects else None,
                positions=self.max_sequence_length,
                token_types=self.token_types,
                norm=self.norm(),
            ),
            layers=self.plain_layers(norms="post"),
            pooler=StatePoolerConfig() if self.head == "sequence" else None,
            head=head,
            init_std=self.init_std,
        )
