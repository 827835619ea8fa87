"""ViT: a transformer over the patches of an image."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.image_encoder_fields import ImageEncoderFields
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.mlp import Activation, PlainMlpConfig
from ziggurat.nn.pooling import StatePoolerConfig


@config.node
class VitConfig(ImageEncoderFields):
    """An encoder of image patches with a class token and learned positions.

    Paper: Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929.
    """

    kind: Literal["vit"] = "vit"
    attention_bias: bool = True
    """Biases on query, key and value."""
    pooler: bool = True
    """A layer over the class token's state; a head does not read it."""
    pooler_width: int | None = None
    """Width of that layer; default ``d_model``."""
    pooler_activation: Activation = "tanh"
    """Function behind that layer."""

    def __post_init__(self):
        ImageEncoderFields.__post_init__(self)
        width = self.pooler_width
        config.require(width is None or width >= 1, "pooler_width", width, "a number >= 1")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        dense = StatePoolerConfig(
            dense=self.pooler_width or self.d_model, activation=self.pooler_activation
        )
        first = StatePoolerConfig() if self.head == "sequence" else None
        block = BlockConfig(
            mixer=self.attention(bias=self.attention_bias),
            mlp=PlainMlpConfig(hidden=self.feed_forward, activation=self.activation),
            norm=self.norm(),
        )
        return EncoderConfig(
            d_model=self.d_model,
            input=self.patches(),
            layers=(LayerConfig(block=block, rule=self.rule, rope=None),) * self.n_layers,
            final_norm=self.norm(),
            pooler=dense if self.pooler and self.head == "none" else first,
            head=self.head_config(),
            init_std=self.init_std,
        )
