"""DINOv3: a vision transformer whose queries and keys rotate by row and column."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.image_encoder_fields import ImageEncoderFields
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.mlp import GatedMlpConfig, PlainMlpConfig
from ziggurat.nn.pooling import StatePoolerConfig
from ziggurat.nn.rope import RopeConfig


@config.node
class Dinov3Config(ImageEncoderFields):
    """An encoder of image patches with rotary positions, registers and scaled branches.

    Paper: Siméoni et al. 2025, https://arxiv.org/abs/2508.10104.
    """

    kind: Literal["dinov3"] = "dinov3"
    norm_eps: float = 1e-5
    """Added to the variance in norms."""
    registers: int = 0
    """Learned tokens between the class token and the patches."""
    rope_theta: float = 100.0
    """Base of the geometric series of frequencies."""
    attention_bias: bool = True
    """Biases on queries and values."""
    key_bias: bool = False
    """A bias on keys too."""
    out_bias: bool = True
    """A bias on the output projection of attention."""
    mlp_bias: bool = True
    """Biases in feed-forward parts."""
    gated: bool = False
    """Gated feed-forward parts (ViT-S+, H+ and 7B)."""

    def __post_init__(self):
        ImageEncoderFields.__post_init__(self)
        require = config.require
        require(self.head == "none", "head", self.head, "none")
        require(self.registers >= 0, "registers", self.registers, "a number >= 0")
        biases = self.attention_bias or not self.key_bias
        require(biases, "key_bias", self.key_bias, "false without biases on queries and values")
        channels = self.d_model // self.n_heads
        require(channels % 4 == 0, "n_heads", self.n_heads, "heads of a multiple of 4 channels")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        mlp_class = GatedMlpConfig if self.gated else PlainMlpConfig
        attention = GroupedAttentionConfig(
            heads=self.n_heads,
            kv_heads=self.n_heads,
            head_dim=self.d_model // self.n_heads,
            bias=self.attention_bias,
            key_bias=self.key_bias,
            out_bias=self.out_bias,
        )
        block = BlockConfig(
            mixer=attention,
            mlp=mlp_class(hidden=self.feed_forward, activation=self.activation, bias=self.mlp_bias),
            norm=self.norm(),
            layer_scale=1.0,
        )
        layer = LayerConfig(block=block, rule=self.rule, rope=RopeConfig(theta=self.rope_theta))
        return EncoderConfig(
            d_model=self.d_model,
            input=self.patches(registers=self.registers, mask_token=True, learned_positions=False),
            layers=(layer,) * self.n_layers,
            final_norm=self.norm(),
            pooler=StatePoolerConfig(),
            init_std=self.init_std,
        )
