"""Gemma 3 with images: SigLIP's encoder before the language model."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int

from ziggurat.core import config
from ziggurat.models.families.gemma import Gemma3Config
from ziggurat.models.families.siglip import SiglipImageConfig
from ziggurat.models.projected_encoder_model import ProjectedEncoderModel
from ziggurat.models.vision_language_model import ImageSpec, PreparedImage
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.projected_encoder import PooledProjectorConfig, ProjectedEncoderConfig


@config.node
class Gemma3VisionConfig:
    """Gemma 3 from 4B on: means of SigLIP's states stand in the prompt, and the tokens of an image
    see one another.

    Paper: Kamath et al. 2025, https://arxiv.org/abs/2503.19786.
    """

    kind: Literal["gemma3_vision"] = "gemma3_vision"
    language: Gemma3Config
    """The language model."""
    image: SiglipImageConfig
    """Encoder of images."""
    pooled_by_attention: bool = False
    """Whether the encoder has its head, which is applied nowhere."""
    tokens_per_image: int = 256
    """Tokens of an image, a square number."""
    image_token: int = 262144
    """Id of the token that stands for an image's tokens."""
    begin_token: int = 255999
    """Id of the token before an image, which stands for it in a text."""
    end_token: int = 256000
    """Id of the token behind an image."""

    video_token: ClassVar[None] = None

    def __post_init__(self):
        high, wide = (s // p for s, p in zip(self.image.image_size, self.image.patch_size))
        side, tokens = math.isqrt(self.tokens_per_image), self.tokens_per_image
        fits = side >= 1 and side**2 == tokens and high == wide and high % side == 0
        expected = f"a square number whose root divides {high} x {wide} patches"
        config.require(fits, "tokens_per_image", tokens, expected)
        for name in ("image_token", "begin_token", "end_token"):
            config.require(getattr(self, name) >= 0, name, getattr(self, name), "a token id")

    @property
    def image_spec(self) -> ImageSpec:
        """Tokens of an image see one another."""
        return ImageSpec(mutual=True)

    @property
    def placeholder(self) -> int:
        """Id of the token that stands for a whole image."""
        return self.begin_token

    def tower(self, precision: Precision) -> ProjectedEncoderModel:
        """The tower."""
        encoder = self.image.encoder()
        if not self.pooled_by_attention:
            encoder = dataclasses.replace(encoder, pooler=None)
        norm = NormConfig(eps=self.image.norm_eps, offset=1.0)
        grid = self.image.image_size[0] // self.image.patch_size[0]
        side = math.isqrt(self.tokens_per_image)
        made = ProjectedEncoderConfig(
            encoder=encoder,
            projector=PooledProjectorConfig(grid=grid, side=side, norm=norm),
            outputs=self.language.d_model,
        )
        return ProjectedEncoderModel.build(made, precision)

    def image_text(self, text_of: Callable[[int], str], image: PreparedImage) -> str:
        """Text that an image's placeholder becomes."""
        begin, end = text_of(self.begin_token), text_of(self.end_token)
        return f"\n\n{begin}{text_of(self.image_token) * image.tokens}{end}\n\n"

    def rotary_positions(
        self, spans: Sequence[slice], images: Sequence[PreparedImage], length: int
    ) -> tuple[Int[np.ndarray, "t a"], int] | None:
        """Positions have one axis."""
        return None
