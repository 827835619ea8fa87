"""Qwen2.5-VL, Qwen3-VL and Qwen 3.5: a tower for images of any size before a Qwen decoder."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from ziggurat.core import config
from ziggurat.models import image_places
from ziggurat.models.families.qwen import Qwen2Config, Qwen3Config
from ziggurat.models.families.qwen_hybrid import Qwen35Config, Qwen35MoeConfig
from ziggurat.models.families.qwen_hybrid.config import HybridFields
from ziggurat.models.families.qwen_moe import Qwen3MoeConfig
from ziggurat.models.families.qwen_vl.vision import (
    Qwen3VisionConfig,
    Qwen25VisionConfig,
)
from ziggurat.models.vision_language_model import ImageSpec, PreparedImage
from ziggurat.models.vision_tower_model import VisionTowerModel
from ziggurat.nn.precision import Precision


@config.node
class QwenVLFields:
    """Parts of a Qwen model with images, and the tokens of its prompts."""

    language: Any
    """The language model."""
    image: Any
    """The vision tower."""
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
        language, width, taps = self.language, self.language.d_model, self.tapped_layers
        found = self.image.outputs
        config.require(found == width, "image.outputs", found, f"d_model = {width}")
        sections, turns = language.rope.sections, _turns(language)
        fits = len(sections) == 3 and sum(sections) == turns
        expected = f"three numbers (time, height, width), {turns} frequencies together"
        config.require(fits, "language.rope.sections", sections, expected)
        fits = len(taps) <= language.n_layers
        expected = f"at most {language.n_layers}, the decoder's layers"
        config.require(fits, "image.tapped_layers", taps, expected)

    @property
    def tapped_layers(self) -> tuple[int, ...]:
        """Layers of the tower whose states reach the decoder's first layers."""
        return getattr(self.image, "tapped_layers", ())

    @property
    def placeholder(self) -> int:
        """Id of the token that stands for a whole image."""
        return self.image_token

    @property
    def image_spec(self) -> ImageSpec:
        """Positions by time, height and width, and embeddings for the first layers."""
        return ImageSpec(position_axes=3, added_layers=len(self.tapped_layers))

    def tower(self, precision: Precision) -> VisionTowerModel:
        """The tower."""
        return VisionTowerModel.build(self.image, precision)

    def image_text(self, text_of: Callable[[int], str], image: PreparedImage) -> str:
        """Text that an image's placeholder becomes."""
        return text_of(self.image_token) * image.tokens

    def rotary_positions(
        self, spans: Sequence[slice], images: Sequence[PreparedImage], length: int
    ) -> tuple[Int[np.ndarray, "t a"], int]:
        """Positions by time, height and width, and how much later the next token stands."""
        grids = [one.grid for one in images if one.grid is not None]
        return image_places.rotary_positions(length, spans, grids, self.image.merge_size)


def _turns(language: Any) -> int:
    """Frequencies of an attention head's rotary embedding."""
    hybrid = isinstance(language, HybridFields)
    return (language.rotary_dim if hybrid else language.channels_per_head) // 2


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


@config.node
class Qwen3MoeVLConfig(QwenVLFields):
    """Qwen3-VL with mixtures of experts: the same tower before Qwen3-MoE's decoder.

    Paper: Bai et al. 2025, https://arxiv.org/abs/2511.21631.
    """

    kind: Literal["qwen3_vl_moe"] = "qwen3_vl_moe"
    language: Qwen3MoeConfig
    """The language model."""
    image: Qwen3VisionConfig
    """The vision tower."""


@config.node
class Qwen35VLFields(QwenVLFields):
    """Fields of Qwen 3.5 with images: Qwen3-VL's tower, whose last states alone are read, before a
    decoder with gated delta nets."""

    image_token: int = 248056
    """Id of the token that stands for an image's tokens."""
    video_token: int = 248057
    """Id of the token that stands for a video's tokens, which are refused."""
    begin_token: int = 248053
    """Id of the token before an image, which chat templates write."""
    end_token: int = 248054
    """Id of the token behind an image."""

    def __post_init__(self):
        super().__post_init__()
        taps = self.tapped_layers
        config.require(not taps, "image.tapped_layers", taps, "none, as the decoder takes none")


@config.node
class Qwen35VLConfig(Qwen35VLFields):
    """Qwen 3.5 and 3.6 with images, dense.

    Source: Qwen team 2026, https://huggingface.co/Qwen/Qwen3.5-27B.
    """

    kind: Literal["qwen3_5"] = "qwen3_5"
    language: Qwen35Config
    """The language model."""
    image: Qwen3VisionConfig
    """The vision tower, without tapped layers."""


@config.node
class Qwen35MoeVLConfig(Qwen35VLFields):
    """Qwen 3.5 and 3.6 with images and mixtures of experts.

    Source: Qwen team 2026, https://huggingface.co/Qwen/Qwen3.5-35B-A3B.
    """

    kind: Literal["qwen3_5_moe"] = "qwen3_5_moe"
    language: Qwen35MoeConfig
    """The language model."""
    image: Qwen3VisionConfig
    """The vision tower, without tapped layers."""


QwenVLConfig = (
    Qwen25VLConfig | Qwen3VLConfig | Qwen3MoeVLConfig | Qwen35VLConfig | Qwen35MoeVLConfig
)
