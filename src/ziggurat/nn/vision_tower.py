"""The vision tower of models that read images at their own sizes: patches to embeddings.

A row holds the patches of several images, of any sizes, and padding. Each patch knows its image,
and its row and column there; these give its rotary angles, its learned position and its windows.
Patches come in blocks of neighbours (2 by 2), in which order the last step merges them.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionRule, Bidirectional
from ziggurat.nn.block import Block, BlockConfig
from ziggurat.nn.layer_scan import LayerStep, scan_layers
from ziggurat.nn.linear import Linear, parameter
from ziggurat.nn.mlp import ACTIVATIONS
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.patch_attention import WithinImages, WithinWindows
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import RopeConfig, axial_rotation
from ziggurat.nn.stacking import LayeredConfig, LayerStacks, stacked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchPlaces:
    """Where the patches of a row stand: in which image, and where in it."""

    images: Int[Array, "b n"]
    """Number of the patch's image in the row, from 1; 0: padding."""
    positions: Int[Array, "b n 2"]
    """Row and column of the patch in its image."""
    sizes: Int[Array, "b n 2"]
    """Rows and columns of patches that its image has."""
    windows: Int[Array, "b w s"] | None = None
    """Indices of the patches of each window; the row's length or more: nothing. For towers with
    windows."""


class ImageEmbeddings(NamedTuple):
    """Results of a vision tower, in the order of the patches, one for each merged block."""

    embeddings: Float[Array, "b m e"]
    """Embeddings at the width of the language model."""
    by_layer: Float[Array, "k b m e"] | None
    """Embeddings of earlier layers' states, to be added behind the first layers of the decoder."""


@runtime_checkable
class MergerConfig(Protocol):
    """Interface of the config of a part that makes embeddings of blocks of patches."""

    @property
    def patches(self) -> int:
        """Patches that become one embedding."""
        ...

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> Any:
        """The module: states of patches ``[b, n, d]`` to embeddings ``[b, m, e]``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchMergerConfig:
    """Config of a :class:`PatchMerger`."""

    patches: int
    """Patches that become one embedding."""
    outputs: int
    """Length of an embedding."""
    norm: NormConfig
    """Norm before the matmuls."""
    norm_merged: bool = False
    """The norm is over the patches together, rather than over each."""

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "PatchMerger":
        return PatchMerger(self, width, std, precision, rngs)


class PatchMerger(nnx.Module):
    r"""Neighbouring patches to one embedding: :math:`y = \mathrm{GELU}(N(x) W_u + b_u) W_d + b_d`,
    with the patches side by side in ``x``.

    Paper: Bai et al. 2025 (Qwen2.5-VL), https://arxiv.org/abs/2502.13923, section 2.1.
    """

    def __init__(
        self, c: PatchMergerConfig, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        self.config, whole = c, width * c.patches

        def linear(outputs: int, axes: tuple[str | None, str]) -> Linear:
            return Linear(whole, outputs, axes, bias=True, std=std, precision=precision, rngs=rngs)

        self.norm = c.norm.build(whole if c.norm_merged else width, precision)
        self.up = linear(whole, (None, "mlp"))
        self.down = linear(c.outputs, ("mlp", "embed"))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m e"]:
        batch, patches = x.shape[:2]
        shape = (batch, patches // self.config.patches, -1)
        merged = self.norm(x.reshape(shape)) if self.config.norm_merged else self.norm(x)
        return self.down(ACTIVATIONS["gelu"](self.up(merged.reshape(shape))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionLayerConfig:
    """One layer of a tower: its block, and what differs between layers of equal parameters."""

    block: BlockConfig
    windowed: bool = False
    """Patches see their window rather than their image."""
    tapped: bool = False
    """The states behind it are merged too, for :attr:`ImageEmbeddings.by_layer`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTowerConfig(LayeredConfig):
    """Config of a :class:`VisionTower`, as a family fixes it."""

    d_model: int
    """Width of the states."""
    inputs: int
    """Numbers of a patch: channels times frames times height times width."""
    input_bias: bool
    """A bias on the projection of patches."""
    input_norm: NormConfig | None = None
    """Norm of the projected patches; ``None``: there is none."""
    position_side: int | None = None
    """Rows, and columns, of a square table of learned positions, interpolated to an image's size;
    ``None``: there is none."""
    rope: RopeConfig
    """Rotary embedding by row and column."""
    rule: AttentionRule
    """Scale of the scores."""
    layers: tuple[VisionLayerConfig, ...]
    merger: MergerConfig
    """The part that makes embeddings of the last states."""
    tap_merger: PatchMergerConfig | None = None
    """The parts that make embeddings of the tapped layers' states, one for each layer."""
    init_std: float
    """Standard deviation of initial weights."""

    def __post_init__(self):
        assert (self.tap_merger is not None) == any(layer.tapped for layer in self.layers)

    @property
    def taps(self) -> tuple[int, ...]:
        """Numbers of the tapped layers, from 0."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.tapped)


class VisionTower(LayerStacks):
    """Patches of images of any sizes to embeddings at the width of a language model.

    Papers: Bai et al. 2025 (Qwen2.5-VL), https://arxiv.org/abs/2502.13923; Qwen3-VL,
    https://arxiv.org/abs/2511.21631; Agrawal et al. 2024 (Pixtral),
    https://arxiv.org/abs/2410.07073; taps: Meng et al. 2024 (DeepStack),
    https://arxiv.org/abs/2406.04334.
    """

    def __init__(self, c: VisionTowerConfig, *, precision: Precision, rngs: nnx.Rngs):
        self.config, self.compute, std, width = c, precision.compute, c.init_std, c.d_model
        self.projection = Linear(
            c.inputs, width, (None, "embed"), bias=c.input_bias, std=std, precision=precision,
            rngs=rngs,
        )  # fmt: skip
        self.input_norm = c.input_norm and c.input_norm.build(width, precision)
        side = c.position_side
        self.positions = (
            None if side is None
            else parameter(rngs, (side * side, width), (None, "embed"), std, precision)
        )  # fmt: skip

        def make(block: BlockConfig, rngs: nnx.Rngs) -> Block:
            return Block(block, width, std, precision, rngs)

        self.add_stacks(c, make, rngs)
        self.merger = c.merger.build(width, std, precision, rngs)
        self.tap_mergers = c.tap_merger and self._mergers(c.tap_merger, precision, rngs)

    def _mergers(self, c: PatchMergerConfig, precision: Precision, rngs: nnx.Rngs) -> PatchMerger:
        def make(rngs: nnx.Rngs) -> PatchMerger:
            return c.build(self.config.d_model, self.config.init_std, precision, rngs)

        return stacked(make, len(self.config.taps), rngs)

    def __call__(self, patches: Float[Array, "b n p"], where: PatchPlaces) -> ImageEmbeddings:
        """Embeddings of merged blocks of patches; those of padding mean nothing.

        Args:
            patches: normalised pixels, flattened by channel, frame, row, column; blocks of
                neighbours that are merged follow one another.
            where: where they stand.

        Raises:
            ShapeError: patches of another size, no whole blocks, or no windows for a tower that
                has them.
        """
        c = self.config
        self._check(patches, where)
        with jax.named_scope("embedding"):
            x = self.projection(patches.astype(self.compute))
            x = x if self.input_norm is None else self.input_norm(x)
            if self.positions is not None:
                x = x + self._learned(where).astype(x.dtype)
        x, tapped = self._run(constrain(x, ("batch", "sequence", "embed")), where)
        if self.tap_mergers is None:
            return ImageEmbeddings(self.merger(x), None)
        graph, params = nnx.split(self.tap_mergers)
        states = jnp.stack([tapped[layer] for layer in c.taps])
        by_layer = jax.lax.map(lambda part: nnx.merge(graph, part[0])(part[1]), (params, states))
        return ImageEmbeddings(self.merger(x), by_layer)

    def _check(self, patches: Float[Array, "b n p"], where: PatchPlaces) -> None:
        c, merged = self.config, self.config.merger.patches
        if patches.shape[2] != c.inputs or patches.shape[1] % merged:
            raise ShapeError(
                "patches of images",
                found=f"{patches.shape[1]} of {patches.shape[2]} numbers",
                expected=f"a multiple of {merged}, each of {c.inputs} numbers",
            )
        if where.windows is None and any(layer.windowed for layer in c.layers):
            raise ShapeError(
                "patches of images", found="no windows", expected="the windows of each row"
            )

    def _learned(self, where: PatchPlaces) -> Float[Array, "b n d"]:
        """Learned positions, interpolated bilinearly; the table's corners are the image's."""
        assert self.positions is not None
        side = self.config.position_side
        assert side is not None
        table = self.positions[...].astype(jnp.float32)
        spans = jnp.maximum(where.sizes - 1, 1).astype(jnp.float32)
        at = where.positions.astype(jnp.float32) * (side - 1) / spans
        low = jnp.floor(at).astype(jnp.int32)
        share = at - low.astype(jnp.float32)
        found: Any = 0.0
        for down in (0, 1):
            for right in (0, 1):
                corner = jnp.minimum(low + jnp.array([down, right])[None, None], side - 1)
                shares = jnp.where(jnp.array([down, right])[None, None] == 1, share, 1 - share)
                weight = shares[..., 0] * shares[..., 1]
                rows = corner[..., 0] * side + corner[..., 1]
                found = found + table[rows] * weight[..., None]
        return found

    def _run(
        self, x: Float[Array, "b n d"], where: PatchPlaces
    ) -> tuple[Float[Array, "b n d"], dict[int, Array]]:
        """The states behind the last layer, and behind the tapped ones by number."""
        c = self.config
        graphs, stacks = self.stack_parts(c)
        steps = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        turns = {
            dim: axial_rotation(where.positions, c.rope, dim)
            for dim in {block.mixer.rope_dim for block in c.stacks}
        }
        whole = WithinImages(images=where.images)
        windows = None if where.windows is None else WithinWindows(windows=where.windows)

        def step(number: int) -> LayerStep:
            layer = c.layers[number]
            turn, graph = turns[layer.block.mixer.rope_dim], graphs[layer.block]
            context: Bidirectional = whole
            if layer.windowed and windows is not None:
                context = windows

            def apply(params: Any, x: Array, state: Any) -> tuple[Array, Any, Array | None]:
                x, state, _ = nnx.merge(graph, params)(x, steps, turn, c.rule, context, state)
                return x, state, x if layer.tapped else None

            return apply

        found = scan_layers(c.layers, stacks, step, x)
        return found.x, found.reports()
