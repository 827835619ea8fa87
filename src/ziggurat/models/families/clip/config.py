"""CLIP: a causal encoder of texts and a ViT, trained so that their vectors agree."""

from typing import ClassVar, Literal

from ziggurat.core import config
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.models.families.image_encoder_fields import ImageEncoderFields
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.mlp import Activation
from ziggurat.nn.pooling import StatePoolerConfig


@config.node
class ClipTextConfig(TextEncoderFields):
    """CLIP's encoder of texts: causal, with norms before each part."""

    kind: Literal["clip_text"] = "clip_text"
    max_sequence_length: int = 77
    """Longest sequence in tokens."""
    activation: Activation = "quick_gelu"
    """Function between the two matmuls of the feed-forward block."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""
    projection: int = 512
    """Length of the vectors."""
    end_id: int = 49407
    """Token id whose first state is the text's; -1: that of the largest id in the text, as files of
    before 2023 have it."""

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        config.require(self.projection >= 1, "projection", self.projection, "a number >= 1")
        config.require(self.end_id >= -1, "end_id", self.end_id, "a token id, or -1")
        config.require(self.head == "none", "head", self.head, "none")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        return EncoderConfig(
            d_model=self.d_model,
            input=TokenInputConfig(vocab_size=self.vocab_size, positions=self.max_sequence_length),
            layers=self.plain_layers(),
            final_norm=self.norm(),
            causal=True,
            pooler=StatePoolerConfig(end_id=self.end_id, dense=self.projection, bias=False),
            init_std=self.init_std,
        )


@config.node
class ClipImageConfig(ImageEncoderFields):
    """CLIP's encoder of images: a ViT with a norm before its blocks."""

    kind: Literal["clip_image"] = "clip_image"
    activation: Activation = "quick_gelu"
    """Function between the two matmuls of the feed-forward block."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""
    patch_size: tuple[int, int] = (32, 32)
    """Height and width in pixels of a patch."""
    projection: int = 512
    """Length of the vectors."""

    def __post_init__(self):
        ImageEncoderFields.__post_init__(self)
        config.require(self.projection >= 1, "projection", self.projection, "a number >= 1")
        config.require(self.head == "none", "head", self.head, "none")

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        return EncoderConfig(
            d_model=self.d_model,
            input=self.patches(bias=False, norm=self.norm()),
            layers=self.plain_layers(),
            pooler=StatePoolerConfig(norm=self.norm(), dense=self.projection, bias=False),
            init_std=self.init_std,
        )


@config.node
class ClipConfig:
    """Two encoders whose vectors' cosines, scaled, say which text and image belong together.

    Paper: Radford et al. 2021, https://arxiv.org/abs/2103.00020.
    """

    kind: Literal["clip"] = "clip"
    text: ClipTextConfig
    """Encoder of texts."""
    image: ClipImageConfig
    """Encoder of images."""
    logit_scale: float = 2.6592
    """Logarithm of the factor on cosines, before training."""

    logit_bias: ClassVar[None] = None
    scalar_shape: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        same = self.text.projection == self.image.projection
        found = [self.text.projection, self.image.projection]
        config.require(same, "text.projection, image.projection", found, "one length")

    @property
    def n_layers(self) -> int:
        """Layers of the deeper tower."""
        return max(self.text.n_layers, self.image.n_layers)
