"""The diffusion transformer: patches of a noisy image in, what was mixed into it out.

Time and class steer every block through its norms (adaLN-zero): six vectors a block shift, scale
and gate what attention and the feed-forward part add, and start at zero, so that fresh blocks
change nothing. Blocks are stacked and scanned as the decoder's are.

Paper: Peebles and Xie 2023 (DiT), https://arxiv.org/abs/2212.09748.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.kernels.linear import take_rows
from ziggurat.mesh import constrain
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule, Bidirectional
from ziggurat.nn.block import MlpConfig
from ziggurat.nn.layer_scan import Remat, rematerialised, scan_layers
from ziggurat.nn.linear import Linear, add, constant, multiply, parameter
from ziggurat.nn.norm import LayerNorm, standardised
from ziggurat.nn.precision import Precision
from ziggurat.nn.stacking import stacked

TIME_FEATURES = 256
"""Sines and cosines of the time that enter its embedding."""
NORM_EPS = 1e-6
"""Epsilon of the norms without parameters; the norm before the feed-forward part has its own."""
EMBEDDING_STD = 0.02
"""Standard deviation of initial embeddings of times and classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionTransformerConfig:
    """Config of a diffusion transformer, as a family fixes it."""

    image_size: int
    """Rows and columns of an image or of its latents, for which positions are spaced by one."""
    patch_size: int
    """Rows and columns of a patch; a patch is a token."""
    in_channels: int
    out_channels: int
    """As many as ``in_channels``, or twice as many where a variance is predicted too."""
    d_model: int
    n_layers: int
    attention: GroupedAttentionConfig
    mlp: MlpConfig
    mlp_width: int
    """Width of the feed-forward block, for its initial weights."""
    classes: int
    """Classes; the table of their embeddings has one more row, for none."""
    norm_eps: float
    """Epsilon of the norm before the feed-forward part."""
    norm_affine: bool
    """Whether that norm has a scale and a bias of its own."""
    shared_conditioning: bool
    """One embedding of time and class for all blocks, as in the paper; else one for each."""


class Conditioning(nnx.Module):
    r"""Time and class as one vector :math:`W_2\,\mathrm{silu}(W_1 f(t) + b_1) + b_2 + E_y`."""

    def __init__(self, c: DiffusionTransformerConfig, precision: Precision, rngs: nnx.Rngs):
        def linear(d_in: int, axes: tuple[str | None, str]) -> Linear:
            return Linear(
                d_in, c.d_model, axes, bias=True, std=EMBEDDING_STD, precision=precision, rngs=rngs
            )

        self.time_in = linear(TIME_FEATURES, (None, "mlp"))
        self.time_out = linear(c.d_model, ("mlp", "embed"))
        shape = (c.classes + 1, c.d_model)
        self.classes = parameter(rngs, shape, (None, "embed"), EMBEDDING_STD, precision)
        self.compute = precision.compute

    def __call__(self, time: Float[Array, "b"], labels: Int[Array, "b"]) -> Float[Array, "b d"]:
        features = time_features(time).astype(self.compute)
        embedded = self.time_out(jax.nn.silu(self.time_in(features)))
        return embedded + take_rows(self.classes[...], labels).astype(self.compute)


class ConditionedBlock(nnx.Module):
    r"""Residual block :math:`x + g_1 A((1 + s_1) N(x) + b_1)`, then the same with the feed-forward
    part; the six vectors are a linear map of the conditioning, zero at first."""

    def __init__(self, c: DiffusionTransformerConfig, precision: Precision, rngs: nnx.Rngs):
        width = c.d_model
        self.conditioning = None if c.shared_conditioning else Conditioning(c, precision, rngs)
        self.modulation = Linear(
            width, 6 * width, ("embed", "mlp"), bias=True, std=0.0, precision=precision, rngs=rngs
        )
        self.attention = c.attention.build(width, width**-0.5, precision, rngs)
        self.mlp = c.mlp.build(width, (2 / (width + c.mlp_width)) ** 0.5, precision, rngs)
        self.mlp_norm = (
            LayerNorm(width, eps=c.norm_eps, precision=precision) if c.norm_affine else None
        )
        self.norm_eps = c.norm_eps

    def __call__(
        self,
        x: Float[Array, "b t d"],
        condition: Float[Array, "b d"] | None,
        time: Float[Array, "b"],
        labels: Int[Array, "b"],
        positions: Int[Array, "b t"],
        rule: AttentionRule,
    ) -> Float[Array, "b t d"]:
        if self.conditioning is not None:
            condition = self.conditioning(time, labels)
        assert condition is not None
        six = self.modulation(jax.nn.silu(condition))[:, None]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(six, 6, axis=-1)
        with jax.named_scope("attention"):
            normed = add(multiply(standardised(x, NORM_EPS).astype(x.dtype), 1 + scale), shift)
            mixed, _ = self.attention(normed, positions, None, rule, Bidirectional(), ())
            x = constrain(x + multiply(mixed, gate), ("batch", "sequence", "embed"))
        with jax.named_scope("mlp"):
            if self.mlp_norm is None:
                normed = standardised(x, self.norm_eps).astype(x.dtype)
            else:
                normed = self.mlp_norm(x)
            y, _ = self.mlp(add(multiply(normed, 1 + mlp_scale), mlp_shift))
            return constrain(x + multiply(y, mlp_gate), ("batch", "sequence", "embed"))


class DiffusionTransformer(nnx.Module):
    """Noisy images, times and classes to predictions of the images' shape.

    Args:
        c: dimensions and switches.
        precision: parameter and compute types.
        remat: what blocks keep for the backward pass, see ``ziggurat.nn.decoder``.
        attention_kernel: ``"auto"`` or a name of ``ziggurat.kernels.attention``.
    """

    def __init__(
        self,
        c: DiffusionTransformerConfig,
        *,
        precision: Precision,
        remat: Remat = "none",
        attention_kernel: str = "auto",
        rngs: nnx.Rngs,
    ):
        def make(rngs: nnx.Rngs) -> ConditionedBlock:
            return ConditionedBlock(c, precision, rngs)

        def zero(d_out: int, axes: tuple[str, str | None]) -> Linear:
            return Linear(
                c.d_model, d_out, axes, bias=True, std=0.0, precision=precision, rngs=rngs
            )

        self.config, self.compute = c, precision.compute
        self.remat: Remat = remat
        self.rule = AttentionRule(
            c.attention.head_dim**-0.5,
            implementation=attention_kernel,
        )
        patch = (c.d_model, c.in_channels, c.patch_size, c.patch_size)
        std = math.prod(patch[1:]) ** -0.5
        self.patch = parameter(rngs, patch, ("embed", None, None, None), std, precision)
        self.patch_bias = constant(0.0, (c.d_model,), ("embed",), precision)
        self.conditioning = Conditioning(c, precision, rngs) if c.shared_conditioning else None
        self.blocks = stacked(make, c.n_layers, rngs)
        self.final_modulation = zero(2 * c.d_model, ("embed", "mlp"))
        self.out = zero(c.patch_size**2 * c.out_channels, ("embed", None))

    def __call__(
        self,
        x: Float[Array, "b i j o"],
        time: Float[Array, "b"],
        labels: Int[Array, "b"],
    ) -> Float[Array, "b i j _"]:
        """Predictions.

        Args:
            x: noisy images or latents, channels last.
            time: on the model's scale, usually 0 to 1000.
            labels: classes; the number of classes itself stands for none.

        Raises:
            ShapeError: rows or columns are no multiple of the patch.
        """
        tokens = self._embed(x)
        condition = None if self.conditioning is None else self.conditioning(time, labels)
        tokens = self._blocks(tokens, condition, time, labels)
        if condition is None:
            condition = self._first_conditioning(time, labels)
        shift, scale = jnp.split(self.final_modulation(jax.nn.silu(condition))[:, None], 2, axis=-1)
        normed = standardised(tokens, NORM_EPS).astype(tokens.dtype)
        normed = add(multiply(normed, 1 + scale), shift)
        return self._image(self.out(normed), x.shape[1], x.shape[2])

    def _embed(self, x: Float[Array, "b i j o"]) -> Float[Array, "b t d"]:
        """Patches as tokens, with their positions added."""
        b, height, width, channels = x.shape
        size = self.config.patch_size
        if height % size or width % size:
            raise ShapeError(
                "diffusion transformer",
                found=f"an image of {height} x {width}",
                expected=f"multiples of its patches' {size}",
            )
        rows, columns = height // size, width // size
        patches = x.astype(self.compute).reshape(b, rows, size, columns, size, channels)
        kernel = self.patch[...].astype(self.compute)
        tokens = jnp.einsum("brucvp,dpuv->brcd", patches, kernel).reshape(b, rows * columns, -1)
        tokens = add(tokens, self.patch_bias[...])
        base = self.config.image_size // size
        where = grid_positions(rows, columns, base, self.config.d_model)
        tokens = tokens + jnp.asarray(where, self.compute)[None]
        return constrain(tokens, ("batch", "sequence", "embed"))

    def _blocks(
        self,
        tokens: Float[Array, "b t d"],
        condition: Float[Array, "b d"] | None,
        time: Float[Array, "b"],
        labels: Int[Array, "b"],
    ) -> Float[Array, "b t d"]:
        graph, params = nnx.split(self.blocks)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape[:2])

        def step(params: Any, x: Array, state: Any) -> tuple[Array, Any, None]:
            block = nnx.merge(graph, params)
            return block(x, condition, time, labels, positions, self.rule), state, None

        one = rematerialised(step, self.remat)
        return scan_layers((None,) * self.config.n_layers, [params], lambda _: one, tokens).x

    def _first_conditioning(
        self, time: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b d"]:
        """The first block's, which also steers the last norm where blocks have their own."""
        own = self.blocks.conditioning
        assert own is not None, "only where it is not shared"
        graph, params = nnx.split(own)
        first = jax.tree.map(lambda leaf: leaf[0], params)
        return nnx.merge(graph, first)(time, labels)

    def _image(self, tokens: Float[Array, "b t _"], height: int, width: int) -> jax.Array:
        b, size = tokens.shape[0], self.config.patch_size
        patches = tokens.reshape(b, height // size, width // size, size, size, -1)
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, -1)


def time_features(time: Float[Array, "b"]) -> Float[Array, "b _"]:
    r"""Cosines and sines of :math:`t\,10000^{-k/(K-1)}`, ``K`` = 128 of each, in float32.

    Paper: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; the ``K - 1`` is diffusers'.
    """
    half = TIME_FEATURES // 2
    rates = np.exp(-math.log(10000.0) * np.arange(half, dtype=np.float32) / (half - 1))
    angles = time.astype(jnp.float32)[:, None] * jnp.asarray(rates, jnp.float32)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@functools.lru_cache(maxsize=8)
def grid_positions(rows: int, columns: int, base: int, width: int) -> Float[np.ndarray, "t d"]:
    """Fixed sines and cosines of a patch's column (the first half of the channels) and row.

    A grid other than ``base`` by ``base`` is stretched over the same range.
    """
    quarter = width // 4
    rates = 10000.0 ** -(np.arange(quarter) / quarter)
    down = np.repeat(np.arange(rows) * (base / rows), columns)
    across = np.tile(np.arange(columns) * (base / columns), rows)
    parts = [turn(np.outer(at, rates)) for at in (across, down) for turn in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)
