"""Pixtral's vision tower before a language model: Mistral Small 3.1 and later, and Pixtral 12B."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from ziggurat.core import config
from ziggurat.models.families.vision_language_family import LANGUAGES
from ziggurat.models.pixtral_processor import BREAK, END
from ziggurat.models.vision_language_model import ImageSpec, PreparedImage
from ziggurat.models.vision_tower_model import VisionTowerModel
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig
from ziggurat.nn.mlp import Activation, GatedMlpConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.patch_projector import PatchProjectorConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import RopeConfig
from ziggurat.nn.vision_tower import VisionLayerConfig, VisionTowerConfig

EPS = 1e-5
"""Added to the mean square in the tower's norms."""


@config.node
class PixtralVisionConfig:
    """Pixtral's tower: RMSNorm, gated feed-forward parts and rotation by row and column; no biases.

    Paper: Agrawal et al. 2024, https://arxiv.org/abs/2410.07073.
    """

    d_model: int = 1024
    """Width of the states."""
    n_layers: int = 24
    """Blocks, up to the one whose states are read."""
    n_heads: int = 16
    """Heads of attention."""
    d_ff: int = 4096
    """Width between the matmuls of the feed-forward part."""
    patch_size: int = 16
    """Height and width in pixels of a patch."""
    image_size: int = 1024
    """Largest height and width in pixels of a picture after resizing."""
    activation: Activation = "gelu"
    """Gate function."""
    rope_theta: float = 10000.0
    """Base of the wavelengths of the rotary embedding."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for name in ("d_model", "n_layers", "n_heads", "d_ff", "patch_size"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        fits = self.d_model % (4 * self.n_heads) == 0
        expected = f"a multiple of {4 * self.n_heads}: two axes rotate pairs of channels per head"
        config.require(fits, "d_model", self.d_model, expected)
        fits = self.image_size >= self.patch_size
        config.require(fits, "image_size", self.image_size, f">= {self.patch_size}, a patch")

    def tower(self, projector: PatchProjectorConfig) -> VisionTowerConfig:
        """The tower before a projector."""
        norm, dim = NormConfig(eps=EPS), self.d_model // self.n_heads
        block = BlockConfig(
            mixer=GroupedAttentionConfig(heads=self.n_heads, kv_heads=self.n_heads, head_dim=dim),
            mlp=GatedMlpConfig(hidden=self.d_ff, activation=self.activation),
            norm=norm,
        )
        return VisionTowerConfig(
            d_model=self.d_model,
            inputs=3 * self.patch_size**2,
            input_bias=False,
            input_norm=norm,
            rope=RopeConfig(theta=self.rope_theta, interleaved=True),
            rule=AttentionRule(dim**-0.5),
            layers=(VisionLayerConfig(block=block),) * self.n_layers,
            merger=projector,
            init_std=self.init_std,
        )


@dataclasses.dataclass(frozen=True)
class PixtralTower:
    """The tower with the projector of a family; implements
    :class:`~ziggurat.models.vision_tower_model.VisionTowerFamilyConfig`."""

    image: PixtralVisionConfig
    projector: PatchProjectorConfig
    merge_size: int

    @property
    def window(self) -> None:
        """Side of the windows of attention, which this tower does not have."""
        return None

    def tower(self) -> VisionTowerConfig:
        """The tower this config stands for."""
        return self.image.tower(self.projector)


@config.node
class PixtralFields:
    """Parts of a model with Pixtral's tower, and the token of its images.

    An image is written line by line: its tokens, and behind each line the text ``[IMG_BREAK]``,
    behind the last one ``[IMG_END]``.
    """

    language: Annotated[Any, LANGUAGES]
    """The language model."""
    image: PixtralVisionConfig
    """The vision tower."""
    image_token: int = 10
    """Id of the token that stands for an image's tokens."""
    activation: Activation = "gelu"
    """Function between the projector's matmuls."""
    projector_bias: bool = False
    """Biases on both."""

    video_token: ClassVar[None] = None

    def __post_init__(self):
        config.require(self.image_token >= 0, "image_token", self.image_token, "a token id")

    @property
    def merged(self) -> int:
        """Patches along each side of a block that becomes one token."""
        return 1

    @property
    def projector(self) -> PatchProjectorConfig:
        """The part that makes embeddings of patches."""
        return PatchProjectorConfig(
            outputs=self.language.d_model, activation=self.activation, bias=self.projector_bias
        )

    @property
    def placeholder(self) -> int:
        """Id of the token that stands for a whole image."""
        return self.image_token

    @property
    def image_spec(self) -> ImageSpec:
        """Tokens of an image see earlier ones alone."""
        return ImageSpec()

    def tower(self, precision: Precision) -> VisionTowerModel:
        """The tower."""
        return VisionTowerModel.build(
            PixtralTower(self.image, self.projector, self.merged), precision
        )

    def image_text(self, text_of: Callable[[int], str], image: PreparedImage) -> str:
        """Text that an image's placeholder becomes."""
        line = image.line or image.tokens
        lines = [text_of(self.image_token) * line] * (image.tokens // line)
        return BREAK.join(lines) + END

    def rotary_positions(
        self, spans: Sequence[slice], images: Sequence[PreparedImage], length: int
    ) -> tuple[Int[np.ndarray, "t a"], int] | None:
        """Positions have one axis."""
        return None


@config.node
class Mistral3Config(PixtralFields):
    """Mistral Small 3.1 and 3.2, and Ministral 3: Pixtral's tower, whose patches are merged, before
    a Mistral decoder.

    Source: Mistral AI 2025, https://mistral.ai/news/mistral-small-3-1.
    """

    kind: Literal["mistral3"] = "mistral3"
    merge_size: int = 2
    """Patches along each side of a block that becomes one token."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.merge_size >= 1, "merge_size", self.merge_size, "a number >= 1")

    @property
    def merged(self) -> int:
        """Patches along each side of a block that becomes one token."""
        return self.merge_size

    @property
    def projector(self) -> PatchProjectorConfig:
        """The part that merges patches; its norm adds to the mean square what the language model's
        norms do."""
        norm = NormConfig(eps=self.language.norm_eps)
        return dataclasses.replace(super().projector, patches=self.merge_size**2, norm=norm)


@config.node
class LlavaPixtralConfig(PixtralFields):
    """Pixtral 12B as transformers publishes it: LLaVA with Pixtral's tower, a token for each patch.

    Paper: Agrawal et al. 2024, https://arxiv.org/abs/2410.07073.
    """

    kind: Literal["llava_pixtral"] = "llava_pixtral"
    projector_bias: bool = True
    """Biases on both."""
