"""SigLIP: an encoder of texts and a ViT pooled by attention, compared by a sigmoid."""

from typing import ClassVar, Literal

from ziggurat.core import config
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.models.families.image_encoder_fields import ImageEncoderFields
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.mlp import Activation, PlainMlpConfig
from ziggurat.nn.pooling import AttentionPoolerConfig, StatePoolerConfig


@config.node
class SiglipTextConfig(TextEncoderFields):
    """SigLIP's encoder of texts, whose vector is made of the state of a row's last token.

    Texts are padded to ``max_sequence_length``, and padding is seen as any token is.
    """

    kind: Literal["siglip_text"] = "siglip_text"
    max_sequence_length: int = 64
    """Tokens of every text, padding included."""
    activation: Activation = "gelu_tanh"
    """Function between the two matmuls of the feed-forward block."""
    norm_eps: float = 1e-6
    """Added to the variance in norms."""
    projection: int | None = None
    """Length of the vectors; default ``d_model``."""

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        found = self.projection
        config.require(found is None or found >= 1, "projection", found, "a number >= 1")
        config.require(self.head == "none", "head", self.head, "none")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        dense = self.projection or self.d_model
        return EncoderConfig(
            d_model=self.d_model,
            input=TokenInputConfig(vocab_size=self.vocab_size, positions=self.max_sequence_length),
            layers=self.plain_layers(),
            final_norm=self.norm(),
            pooler=StatePoolerConfig(pooling="last", dense=dense),
            init_std=self.init_std,
        )


@config.node
class SiglipImageConfig(ImageEncoderFields):
    """SigLIP's encoder of images: a ViT without a class token, pooled by a learned query."""

    kind: Literal["siglip_image"] = "siglip_image"
    activation: Activation = "gelu_tanh"
    """Function between the two matmuls of the feed-forward block."""
    norm_eps: float = 1e-6
    """Added to the variance in norms."""

    def __post_init__(self):
        ImageEncoderFields.__post_init__(self)
        config.require(self.head == "none", "head", self.head, "none")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        mlp = PlainMlpConfig(hidden=self.feed_forward, activation=self.activation)
        return EncoderConfig(
            d_model=self.d_model,
            input=self.patches(class_token=False),
            layers=self.plain_layers(),
            final_norm=self.norm(),
            pooler=AttentionPoolerConfig(heads=self.n_heads, norm=self.norm(), mlp=mlp),
            init_std=self.init_std,
        )


@config.node
class SiglipConfig:
    """Two encoders whose vectors' cosines, scaled and shifted, are logits of belonging together.

    Papers: Zhai et al. 2023, https://arxiv.org/abs/2303.15343; SigLIP 2 at fixed sizes: Tschannen
    et al. 2025, https://arxiv.org/abs/2502.14786.
    """

    kind: Literal["siglip"] = "siglip"
    text: SiglipTextConfig
    """Encoder of texts."""
    image: SiglipImageConfig
    """Encoder of images."""
    logit_scale: float = 0.0
    """Logarithm of the factor on cosines, before training."""
    logit_bias: float = 0.0
    """Added to the scaled cosines, before training."""

    scalar_shape: ClassVar[tuple[int, ...]] = (1,)

    def __post_init__(self):
        length = self.text.projection or self.text.d_model
        same = length == self.image.d_model
        found = [length, self.image.d_model]
        config.require(same, "text.projection, image.d_model", found, "one length")

    @property
    def n_layers(self) -> int:
        """Layers of the deeper tower."""
        return max(self.text.n_layers, self.image.n_layers)
