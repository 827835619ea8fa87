"""Qwen2.5-VL and Qwen3-VL: a tower for images of any size before a Qwen decoder."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from ziggurat.core import config
from ziggurat.models import image_places
from ziggurat.models.families.qwen import Qwen2Config, Qwen3Config
from ziggurat.models.families.qwen_vl.vision import (
    Qwen3VisionConfig,
    Qwen25VisionConfig,
    QwenVisionConfig,
)
from ziggurat.models.vision_language_model import ImageSpec, PreparedImage
from ziggurat.models.vision_tower_model import VisionTowerModel
from ziggurat.nn.precision import Precision


@config.node
class QwenVLFields:
    """Tokens of a prompt with images."""

    image_token: int = 151655
    """Id of the token that stands for an image's tokens."""
    video_token: int = 151656
    """Id of the token that stands for a video's tokens, which are refused."""
    begin_token: int = 151652
    """Id of the token before an image, which chat templates write."""
    end_token: int = 151653
    """Id of the token behind an image."""

    def __post_init__(self):
        for name in ("image_token", "video_token", "begin_token", "end_token"):
            config.require(getattr(self, name) >= 0, name, getattr(self, name), "a token id")

    @property
    def placeholder(self) -> int:
        """Id of the token that stands for a whole image."""
        return self.image_token

    def image_text(self, text_of: Callable[[int], str], image: PreparedImage) -> str:
        """Text that an image's placeholder becomes."""
        return text_of(self.image_token) * image.tokens


def _check(language: Qwen2Config | Qwen3Config, image: QwenVisionConfig) -> None:
    """Refuse parts that do not fit together."""
    width, taps = language.d_model, getattr(image, "tapped_layers", ())
    config.require(image.outputs == width, "image.outputs", image.outputs, f"d_model = {width}")
    sections, turns = language.rope.sections, language.channels_per_head // 2
    fits = len(sections) == 3 and sum(sections) == turns
    expected = f"three numbers (time, height, width), {turns} frequencies together"
    config.require(fits, "language.rope.sections", sections, expected)
    fits = len(taps) <= language.n_layers
    expected = f"at most {language.n_layers}, the decoder's layers"
    config.require(fits, "image.tapped_layers", taps, expected)


def _rotary_positions(
    image: QwenVisionConfig, spans: Sequence[slice], images: Sequence[PreparedImage], length: int
) -> tuple[Int[np.ndarray, "t a"], int]:
    grids = [one.grid for one in images if one.grid is not None]
    return image_places.rotary_positions(length, spans, grids, image.merge_size)


@config.node
class Qwen25VLConfig(QwenVLFields):
    """Qwen2.5-VL: a tower with windows before Qwen 2.5's decoder, whose positions have three axes.

    Paper: Bai et al. 2025, https://arxiv.org/abs/2502.13923.
    """

    kind: Literal["qwen2_5_vl"] = "qwen2_5_vl"
    language: Qwen2Config
    """The language model."""
    image: Qwen25VisionConfig
    """The vision tower."""

    def __post_init__(self):
        QwenVLFields.__post_init__(self)
        _check(self.language, self.image)

    @property
    def image_spec(self) -> ImageSpec:
        """Positions by time, height and width."""
        return ImageSpec(position_axes=3)

    def tower(self, precision: Precision) -> VisionTowerModel:
        """The tower."""
        return VisionTowerModel.build(self.image, precision)

    def rotary_positions(
        self, spans: Sequence[slice], images: Sequence[PreparedImage], length: int
    ) -> tuple[Int[np.ndarray, "t a"], int]:
        """Positions by time, height and width, and how much later the next token stands."""
        return _rotary_positions(self.image, spans, images, length)


@config.node
class Qwen3VLConfig(QwenVLFields):
    """Qwen3-VL: a tower whose states of several layers reach the first layers of Qwen 3's decoder.

    Paper: Bai et al. 2025, https://arxiv.org/abs/2511.21631.
    """

    kind: Literal["qwen3_vl"] = "qwen3_vl"
    language: Qwen3Config
    """The language model."""
    image: Qwen3VisionConfig
    """The vision tower."""

    def __post_init__(self):
        QwenVLFields.__post_init__(self)
        _check(self.language, self.image)

    @property
    def image_spec(self) -> ImageSpec:
        """Positions by time, height and width, and embeddings for the first layers."""
        return ImageSpec(position_axes=3, added_layers=len(self.image.tapped_layers))

    def tower(self, precision: Precision) -> VisionTowerModel:
        """The tower."""
        return VisionTowerModel.build(self.image, precision)

    def rotary_positions(
        self, spans: Sequence[slice], images: Sequence[PreparedImage], length: int
    ) -> tuple[Int[np.ndarray, "t a"], int]:
        """Positions by time, height and width, and how much later the next token stands."""
        return _rotary_positions(self.image, spans, images, length)


QwenVLConfig = Qwen25VLConfig | Qwen3VLConfig
