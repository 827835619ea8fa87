"""Vision towers of Qwen2.5-VL and Qwen3-VL; Qwen 3.5 has the latter."""

from typing import Any

from ziggurat.core import config
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, MlpConfig
from ziggurat.nn.mlp import Activation, GatedMlpConfig, PlainMlpConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.rope import RopeConfig
from ziggurat.nn.vision_tower import PatchMergerConfig, VisionLayerConfig, VisionTowerConfig

EPS = 1e-6
"""Added to the mean square, or the variance, in every norm of both towers."""


@config.node
class QwenVisionFields:
    """Dimensions that both towers have."""

    d_model: int
    """Width of the states."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Heads of attention."""
    d_ff: int
    """Width between the matmuls of the feed-forward part."""
    outputs: int
    """Length of an embedding: the width of the language model."""
    patch_size: int = 14
    """Height and width in pixels of a patch."""
    merge_size: int = 2
    """Patches along each side of a block that becomes one token."""
    frames: int = 2
    """Pictures along time that are one patch; a still picture is repeated."""
    channels: int = 3
    """Colour channels."""
    rope_theta: float = 10000.0
    """Base of the wavelengths of the rotary embedding."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for name in (
            "d_model", "n_layers", "n_heads", "d_ff", "outputs", "patch_size", "merge_size",
            "frames", "channels",
        ):  # fmt: skip
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        fits = self.d_model % (4 * self.n_heads) == 0
        expected = f"a multiple of {4 * self.n_heads}: two axes rotate pairs of channels per head"
        config.require(fits, "d_model", self.d_model, expected)

    @property
    def window(self) -> int | None:
        """Side in patches of the windows of its attention; ``None``: it has none."""
        return None

    def block(self, mlp: MlpConfig, norm: NormConfig) -> BlockConfig:
        """The block of every layer."""
        dim = self.d_model // self.n_heads
        attention = GroupedAttentionConfig(
            heads=self.n_heads, kv_heads=self.n_heads, head_dim=dim, bias=True, out_bias=True
        )
        return BlockConfig(mixer=attention, mlp=mlp, norm=norm)

    def merger(self, norm: NormConfig, **switches: Any) -> PatchMergerConfig:
        """The part that makes an embedding of a block of patches."""
        patches = self.merge_size**2
        return PatchMergerConfig(patches=patches, outputs=self.outputs, norm=norm, **switches)

    def tower_of(
        self, layers: list[VisionLayerConfig], merger: PatchMergerConfig, **parts: Any
    ) -> VisionTowerConfig:
        """A tower of these layers."""
        return VisionTowerConfig(
            d_model=self.d_model,
            inputs=self.channels * self.frames * self.patch_size**2,
            rope=RopeConfig(theta=self.rope_theta),
            rule=AttentionRule((self.d_model // self.n_heads) ** -0.5),
            layers=tuple(layers),
            merger=merger,
            init_std=self.init_std,
            **parts,
        )


def _check_layers(name: str, found: tuple[int, ...], n_layers: int) -> None:
    fits = list(found) == sorted(set(found)) and all(0 <= i < n_layers for i in found)
    config.require(fits, name, found, f"rising numbers from 0 to {n_layers - 1}")


@config.node
class Qwen25VisionConfig(QwenVisionFields):
    """Qwen2.5-VL's tower: RMSNorm, gated feed-forward parts, and windows in most layers.

    Paper: Bai et al. 2025, https://arxiv.org/abs/2502.13923.
    """

    activation: Activation = "silu"
    """Gate function."""
    window_size: int = 112
    """Side in pixels of a window."""
    full_layers: tuple[int, ...] = (7, 15, 23, 31)
    """Layers, from 0, whose patches see the whole image rather than their window."""

    def __post_init__(self):
        QwenVisionFields.__post_init__(self)
        least = self.patch_size * self.merge_size
        config.require(self.window_size >= least, "window_size", self.window_size, f">= {least}")
        _check_layers("full_layers", self.full_layers, self.n_layers)

    @property
    def window(self) -> int:
        """Side in patches of the windows of its attention."""
        return self.window_size // self.merge_size // self.patch_size * self.merge_size

    def tower(self) -> VisionTowerConfig:
        """The tower this config stands for."""
        norm = NormConfig(eps=EPS)
        mlp = GatedMlpConfig(hidden=self.d_ff, activation=self.activation, bias=True)
        block = self.block(mlp, norm)
        layers = [
            VisionLayerConfig(block=block, windowed=i not in self.full_layers)
            for i in range(self.n_layers)
        ]
        return self.tower_of(layers, self.merger(norm), input_bias=False)


@config.node
class Qwen3VisionConfig(QwenVisionFields):
    """Qwen3-VL's tower: LayerNorm, learned positions beside rotary ones, and states of some layers
    for the first layers of the decoder.

    Paper: Bai et al. 2025, https://arxiv.org/abs/2511.21631.
    """

    patch_size: int = 16
    """Height and width in pixels of a patch."""
    activation: Activation = "gelu_tanh"
    """Function between the two matmuls of the feed-forward part."""
    position_side: int = 48
    """Rows, and columns, of the table of learned positions."""
    tapped_layers: tuple[int, ...] = (8, 16, 24)
    """Layers, from 0, whose states are added behind the first layers of the decoder."""

    def __post_init__(self):
        QwenVisionFields.__post_init__(self)
        side = self.position_side
        config.require(side >= 1, "position_side", side, "a number >= 1")
        _check_layers("tapped_layers", self.tapped_layers, self.n_layers)

    def tower(self) -> VisionTowerConfig:
        """The tower this config stands for."""
        norm = NormConfig(kind="layer", eps=EPS)
        mlp = PlainMlpConfig(hidden=self.d_ff, activation=self.activation)
        block, tapped = self.block(mlp, norm), self.tapped_layers
        layers = [VisionLayerConfig(block=block, tapped=i in tapped) for i in range(self.n_layers)]
        taps = self.merger(norm, norm_merged=True) if tapped else None
        return self.tower_of(
            layers,
            self.merger(norm),
            input_bias=True,
            position_side=self.position_side,
            tap_merger=taps,
        )


QwenVisionConfig = Qwen25VisionConfig | Qwen3VisionConfig
