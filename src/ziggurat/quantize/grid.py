r"""Values that a format can represent: scales and zero points of tiles, codes and back.

A weight ``[d, f]`` has tiles of inputs along ``d``; every function here sums over the first axis.

>>> grid = Grid.fit(jnp.array([[1.0], [-2.0], [0.5], [3.75]]), WeightFormat("int4"))
>>> grid.decode(grid.encode(jnp.array([[1.1], [9.0]]), slice(0, 2)), slice(0, 2)).tolist()
[[1.0], [3.5]]
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ziggurat.kernels.linear import QuantizedWeight, WeightFormat
from ziggurat.kernels.linear.weight_types import TYPES, pack_bits

LIMITS = {"int4": (-8, 7), "int8": (-128, 127)}
"""Least and greatest code of the integers that recipes may use."""
_LEAST_SHARE, _SHARES = 0.4, 49
"""The search tries this many shares of the largest magnitude, evenly spaced from 1 down."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grid:
    r"""The values :math:`(q - z) s` of every input and output, for codes :math:`q`.

    Codes are integers of ``int4`` and ``int8``, 8-bit floats, and for other types numbers of their
    levels.
    """

    scale: Any
    """Float32 ``[d, f]``: each input with the scale of its tile."""
    zero: Any
    """Zero points as ``scale``, or ``None``; always a code, so that zero itself is a value."""
    format: WeightFormat = dataclasses.field(metadata={"static": True})

    @classmethod
    def fit(
        cls,
        weight: Float[Array, "d f"],
        format: WeightFormat,
        clip: float = 1.0,
        importance: Float[Array, " d"] | None = None,
    ) -> "Grid":
        r"""Scales of the least squared error :math:`\sum_i h_i (w_i - \hat w_i)^2` in each tile.

        Args:
            weight: float32.
            format: type and tiles.
            clip: largest share of a tile's largest magnitude that is kept.
            importance: :math:`h`, second moments of the inputs; default all alike.
        """
        inputs, outputs = weight.shape
        tiles = weight.reshape(format.tiles(inputs), -1, outputs)
        by_input = jnp.ones(inputs) if importance is None else importance
        by_input = by_input.astype(jnp.float32).reshape(*tiles.shape[:2], 1)

        def tried(best: Any, share: Array) -> tuple[Any, None]:
            grid = cls._of_range(tiles, share * clip, format)
            off = tiles - grid.decode(grid.encode(tiles))
            error = jnp.sum(by_input * jnp.square(off), axis=1, keepdims=True)
            better = error < best[0]
            kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), grid, best[1])
            return (jnp.where(better, error, best[0]), kept), None

        first = cls._of_range(tiles, jnp.float32(clip), format)
        unknown = jnp.full((tiles.shape[0], 1, outputs), jnp.inf, jnp.float32)
        shares = jnp.linspace(1.0, _LEAST_SHARE, _SHARES, dtype=jnp.float32)
        (_, best), _ = jax.lax.scan(tried, (unknown, first), shares)
        return best.spread(inputs)

    @classmethod
    def widest(cls, weight: Float[Array, "d f"], format: WeightFormat, clip: float = 1.0) -> "Grid":
        """Scales that reach to the largest magnitude of each tile, or to a share ``clip`` of it."""
        inputs, outputs = weight.shape
        tiles = weight.reshape(format.tiles(inputs), -1, outputs)
        return cls._of_range(tiles, jnp.float32(clip), format).spread(inputs)

    @classmethod
    def _of_range(cls, tiles: Float[Array, "n m f"], share: Array, format: WeightFormat) -> "Grid":
        """Scales ``[n, 1, f]`` that reach to ``share`` of the largest magnitudes."""
        if format.symmetric:
            reach = share * jnp.abs(tiles).max(axis=1, keepdims=True)
            scale = _positive(reach / _bound(format))
            return cls(scale, None, format)
        low, high = LIMITS[format.weight]
        least = share * jnp.minimum(tiles.min(axis=1, keepdims=True), 0)
        most = share * jnp.maximum(tiles.max(axis=1, keepdims=True), 0)
        scale = _positive((most - least) / (high - low))
        return cls(scale, jnp.clip(jnp.round(low - least / scale), low, high), format)

    def spread(self, inputs: int) -> "Grid":
        """Scales of tiles ``[n, 1, f]`` given to each of their inputs ``[d, f]``."""

        def one(part: Float[Array, "n 1 f"]) -> Float[Array, "d f"]:
            return jnp.repeat(part[:, 0], inputs // part.shape[0], axis=0)

        return jax.tree.map(one, self)

    def encode(self, weight: Float[Array, "..."], rows: Any = ...) -> Array:
        """Codes of the values next to some weights, whose scales are in ``rows``."""
        ratio, kind = weight / self.scale[rows], self.format.weight
        if (float_type := _float_type(kind)) is not None:
            most = float(jnp.finfo(float_type).max)
            return jnp.clip(ratio, -most, most).astype(float_type)
        if kind not in LIMITS:
            levels = np.asarray(TYPES[kind].levels, np.float32)
            order = np.argsort(levels)
            borders = (levels[order][1:] + levels[order][:-1]) / 2
            return jnp.asarray(order.astype(np.uint8))[jnp.searchsorted(borders, ratio)]
        if self.zero is not None:
            ratio = ratio + self.zero[rows]
        return jnp.clip(jnp.round(ratio), *LIMITS[kind]).astype(jnp.int8)

    def decode(self, codes: Array, rows: Any = ...) -> Float[Array, "..."]:
        """Values of codes, in float32."""
        kind = self.format.weight
        if kind in LIMITS or _float_type(kind) is not None:
            values = codes.astype(jnp.float32)
        else:
            values = jnp.asarray(TYPES[kind].levels, jnp.float32)[codes]
        if self.zero is not None:
            values = values - self.zero[rows]
        return values * self.scale[rows]

    def quantized(self, codes: Array, axis: int) -> QuantizedWeight:
        """Codes ``[d, f]`` as a weight that sums over ``axis``: -2 as they are, -1 transposed."""
        inputs = codes.shape[0]
        each = inputs // self.format.tiles(inputs)

        def laid(part: Array) -> Array:
            return part if axis == -2 else part.T

        zero = None if self.zero is None else laid(self.zero[::each]).astype(jnp.int8)
        low, high, kind = laid(codes), None, TYPES[self.format.weight]
        if kind.low < 8:
            unsigned = low.astype(jnp.uint8)
            low = pack_bits(unsigned, axis, kind.low)
            high = pack_bits(unsigned >> kind.low, axis, kind.high) if kind.high else None
        scale = laid(self.scale[::each])
        return QuantizedWeight(low, scale, zero, self.format, axis, high=high)


def _positive(scale: Array) -> Array:
    """1 in place of scales of tiles of zeros."""
    return jnp.where(scale < jnp.sqrt(jnp.finfo(jnp.float32).tiny), 1.0, scale)


def _float_type(kind: str) -> Any:
    """The type of 8-bit floats; ``None`` for others."""
    stored = TYPES[kind].dtype
    return jnp.dtype(stored) if stored.startswith("float8") else None


def _bound(format: WeightFormat) -> float:
    """The largest magnitude of codes' values; of integers half a step more, which rounds to the
    last."""
    if format.weight in LIMITS:
        return LIMITS[format.weight][1] + 0.5
    if (float_type := _float_type(format.weight)) is not None:
        return float(jnp.finfo(float_type).max)
    return max(abs(level) for level in TYPES[format.weight].levels)
