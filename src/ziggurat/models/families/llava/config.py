"""LLaVA: CLIP's encoder of images before a language model."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from ziggurat.core import config
from ziggurat.models.families.clip import ClipImageConfig
from ziggurat.models.families.vision_language_family import LANGUAGES
from ziggurat.models.projected_encoder_model import ProjectedEncoderModel
from ziggurat.models.vision_language_model import ImageSpec, PreparedImage
from ziggurat.nn.mlp import Activation
from ziggurat.nn.pooling import StatePoolerConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.projected_encoder import MlpProjectorConfig, ProjectedEncoderConfig


@config.node
class LlavaConfig:
    """LLaVA 1.5: states of a CLIP layer, through two matmuls, stand in the prompt.

    Paper: Liu et al. 2023, https://arxiv.org/abs/2310.03744.
    """

    kind: Literal["llava"] = "llava"
    language: Annotated[Any, LANGUAGES]
    """The language model."""
    image: ClipImageConfig
    """Encoder of images, as deep as the layer whose states are read."""
    image_token: int = 32000
    """Id of the token that stands for an image's tokens."""
    class_token: bool = False
    """Whether the state of the class token stands in the prompt before those of patches."""
    activation: Activation = "gelu"
    """Function between the projector's matmuls."""
    projector_bias: bool = True
    """Biases on both."""

    video_token: ClassVar[None] = None

    def __post_init__(self):
        config.require(self.image_token >= 0, "image_token", self.image_token, "a token id")

    @property
    def image_spec(self) -> ImageSpec:
        """Tokens of an image see earlier ones alone."""
        return ImageSpec()

    @property
    def placeholder(self) -> int:
        """Id of the token that stands for a whole image."""
        return self.image_token

    def tower(self, precision: Precision) -> ProjectedEncoderModel:
        """The tower; the norm of CLIP's vector is read and written, and applied nowhere."""
        pooler = StatePoolerConfig(norm=self.image.norm())
        encoder = dataclasses.replace(self.image.encoder(), pooler=pooler)
        projector = MlpProjectorConfig(activation=self.activation, bias=self.projector_bias)
        made = ProjectedEncoderConfig(
            encoder=encoder,
            left_out=0 if self.class_token else 1,
            projector=projector,
            outputs=self.language.d_model,
        )
        return ProjectedEncoderModel.build(made, precision)

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens of an image of this size in pixels."""
        high, wide = self.image.patch_size
        return (height // high) * (width // wide) + self.class_token

    def image_text(self, text_of: Callable[[int], str], image: PreparedImage) -> str:
        """Text that an image's placeholder becomes."""
        return text_of(self.image_token) * image.tokens

    def rotary_positions(
        self, spans: Sequence[slice], images: Sequence[PreparedImage], length: int
    ) -> tuple[Int[np.ndarray, "t a"], int] | None:
        """Positions have one axis."""
        return None
