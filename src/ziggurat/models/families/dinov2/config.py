"""DINOv2: ViT with scaled branches, with or without registers."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.image_encoder_fields import ImageEncoderFields
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.mlp import GatedMlpConfig, PlainMlpConfig
from ziggurat.nn.pooling import StatePoolerConfig


@config.node
class Dinov2Config(ImageEncoderFields):
    """An encoder of image patches whose branches are multiplied by learned vectors.

    Papers: Oquab et al. 2023, https://arxiv.org/abs/2304.07193; registers: Darcet et al. 2023,
    https://arxiv.org/abs/2309.16588.
    """

    kind: Literal["dinov2"] = "dinov2"
    norm_eps: float = 1e-6
    """Added to the variance in norms."""
    d_ff: int | None = None
    """Width of the feed-forward part, a multiple of ``d_model``, of which a gated one has two
    thirds; default ``4 d_model``."""
    attention_bias: bool = True
    """Biases on query, key and value."""
    gated: bool = False
    """Gated feed-forward parts (the giant model)."""
    registers: int | None = None
    """Learned tokens between the class token and the patches; default none, and none of the
    architecture that has them."""
    mask_token: bool = True
    """A learned vector that stands for hidden patches."""

    def __post_init__(self):
        ImageEncoderFields.__post_init__(self)
        ratio = self.feed_forward % self.d_model == 0
        config.require(ratio, "d_ff", self.d_ff, f"a multiple of {self.d_model}")
        found = self.registers
        config.require(found is None or found >= 1, "registers", found, "a number >= 1")

    @property
    def gated_width(self) -> int:
        """Width of a gated feed-forward part: two thirds, rounded up to a multiple of 8."""
        return -(-(self.feed_forward * 2 // 3) // 8) * 8

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        gated = GatedMlpConfig(hidden=self.gated_width, activation="silu", bias=True)
        plain = PlainMlpConfig(hidden=self.feed_forward, activation=self.activation)
        block = BlockConfig(
            mixer=self.attention(bias=self.attention_bias),
            mlp=gated if self.gated else plain,
            norm=self.norm(),
            layer_scale=1.0,
        )
        registers = self.registers or 0
        pooler = StatePoolerConfig()
        if self.head == "sequence":
            pooler = dataclasses.replace(pooler, pooling="first_and_mean", ahead=1 + registers)
        return EncoderConfig(
            d_model=self.d_model,
            input=self.patches(
                registers=registers, mask_token=self.mask_token, antialias=registers > 0
            ),
            layers=(LayerConfig(block=block, rule=self.rule, rope=None),) * self.n_layers,
            final_norm=self.norm(),
            pooler=pooler,
            head=self.head_config(),
            init_std=self.init_std,
        )
