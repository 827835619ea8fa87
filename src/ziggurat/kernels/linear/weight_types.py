"""Packing of quantised values: several of fewer than eight bits in a byte.

Such values lie in planes of 4, 2 or 1 bits, each a power of two that fills bytes: five bits are a
plane of four and one of one. In every plane the first value of the summed axis is in the low bits.
The types themselves are records of :mod:`ziggurat.kernels.weight_types`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from ziggurat.kernels.weight_types import BUILT_IN, WEIGHT_TYPES, ValueType

WeightType = str
"""A name in :data:`~ziggurat.kernels.weight_types.WEIGHT_TYPES`."""
TYPES = WEIGHT_TYPES

Codes = UInt8[Array, "..."] | UInt8[np.ndarray, "..."]
"""Array of quantised values: a code of one value in each byte, or several packed into it."""


FOUR_BIT = frozenset(name for name, kind in BUILT_IN.items() if kind.bits == 4)


def pack_bits(codes: Any, axis: int, bits: int) -> Codes:
    """Codes of ``bits`` bits, several in a byte along ``axis``, the first in the low bits; numpy's
    stay numpy's.

    >>> pack_bits(np.array([[1, 2, 3, 0]]), -1, 2).tolist()
    [[57]]
    """
    lib: Any = np if isinstance(codes, np.ndarray) else jnp
    each, mask = 8 // bits, (1 << bits) - 1
    moved = lib.moveaxis(codes, axis, -1).astype(lib.uint8) & lib.uint8(mask)
    parts = moved.reshape(*moved.shape[:-1], moved.shape[-1] // each, each)
    packed = parts[..., 0]
    for place in range(1, each):
        packed = packed | (parts[..., place] << lib.uint8(bits * place))
    return lib.moveaxis(packed, -1, axis)


def unpack_bits(packed: Codes, axis: int, bits: int) -> Codes:
    """The reverse of :func:`pack_bits`.

    >>> unpack_bits(np.array([[57]], np.uint8), -1, 2).tolist()
    [[1, 2, 3, 0]]
    """
    lib: Any = np if isinstance(packed, np.ndarray) else jnp
    axis %= packed.ndim
    each, mask = 8 // bits, (1 << bits) - 1
    parts = [(packed >> lib.uint8(bits * place)) & lib.uint8(mask) for place in range(each)]
    shape = (*packed.shape[:axis], each * packed.shape[axis], *packed.shape[axis + 1 :])
    return lib.stack(parts, axis=axis + 1).reshape(shape)


def pack(values: Any, axis: int) -> Codes:
    """Four-bit integers, two in a byte along ``axis``, the first in the low half."""
    lib: Any = np if isinstance(values, np.ndarray) else jnp
    return pack_bits(values.astype(lib.int8).astype(lib.uint8), axis, 4)


def unpack(packed: UInt8[Array, "..."], axis: int, *, signed: bool) -> Integer[Array, "..."]:
    """The reverse of :func:`pack`; int8 if signed, else uint8.

    >>> unpack(pack(jnp.array([[-8, 7, 3, -1]], jnp.int4), -1), -1, signed=True).tolist()
    [[-8, 7, 3, -1]]
    """
    values: Any = unpack_bits(packed, axis, 4)
    return (values ^ 8).astype(jnp.int8) - 8 if signed else values


def planes(codes: np.ndarray, kind: ValueType) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes ``[..., d]`` in the planes of a type of fewer than eight bits."""
    low: Any = pack_bits(codes & ((1 << kind.low) - 1), -1, kind.low)
    high: Any = pack_bits(codes >> kind.low, -1, kind.high) if kind.high else None
    return low, high


def decoded(low: Any, high: Any, axis: int, kind: ValueType) -> Float[Array, "..."]:
    """Values from their stored form, in float32."""
    if kind.low == 8:
        return low.astype(jnp.float32)
    codes: Any = unpack_bits(low, axis, kind.low)
    if kind.high:
        codes = codes | (unpack_bits(high, axis, kind.high) << kind.low)
    if kind.table is not None:
        return _looked_up(codes, kind.table)
    if kind.twos_complement:
        codes = (codes ^ 8).astype(jnp.int8) - 8
    return codes.astype(jnp.float32) - kind.bias


def nearest(
    weight: Float[Array, "..."], kind: ValueType, axis: int, tile: int | None, clip: float = 1.0
) -> tuple[UInt8[Array, "..."], UInt8[Array, "..."] | None, Float[Array, "..."]]:
    """Values rounded to the nearest level of a type of fewer than eight bits, for types that Qwix
    does not know: both planes, and the scales.

    >>> low, high, scale = nearest(jnp.array([[-8.0, 7.0, 3.4, -1.0]]), TYPES["int4"], -1, None)
    >>> (decoded(low, high, -1, TYPES["int4"]) * scale).tolist()
    [[-8.0, 7.0, 3.0, -1.0]]

    Args:
        weight: floats.
        kind: type of the values.
        axis: over which matmuls sum.
        tile: inputs that share a scale, the tile's ``clip`` times greatest magnitude over the
            type's; ``None``: all.
        clip: share of the largest magnitude that is kept.
    """
    if kind.low == 8:
        raise ValueError("values of eight bits are quantised by Qwix only")
    levels = np.array(kind.levels, np.float32)
    order = np.argsort(levels)
    borders = (levels[order][1:] + levels[order][:-1]) / 2
    moved = jnp.moveaxis(weight.astype(jnp.float32), axis, -1)
    tiles = moved.reshape(*moved.shape[:-1], -1, tile or moved.shape[-1])
    greatest = clip * jnp.abs(tiles).max(-1, keepdims=True) / np.abs(levels).max()
    scale = jnp.where(greatest == 0, 1.0, greatest)
    places = jnp.searchsorted(jnp.asarray(borders), (tiles / scale).reshape(moved.shape))
    codes = jnp.moveaxis(jnp.asarray(order.astype(np.uint8))[places], -1, axis)
    low: Any = pack_bits(codes & ((1 << kind.low) - 1), axis, kind.low)
    high: Any = pack_bits(codes >> kind.low, axis, kind.high) if kind.high else None
    return low, high, jnp.moveaxis(scale[..., 0], -1, axis).astype(weight.dtype)


def _looked_up(codes: UInt8[Array, "..."], table: tuple[float, ...]) -> Float[Array, "..."]:
    """Entries of a table of a power of two by their numbers, bit by bit: XLA:CPU vectorises
    selections, and takes a gather one by one."""
    entries: list[Any] = [jnp.float32(value) for value in table]
    bit = 0
    while len(entries) > 1:
        odd = (codes >> bit) & 1 == 1
        entries = [jnp.where(odd, b, a) for a, b in zip(entries[0::2], entries[1::2])]
        bit += 1
    return entries[0]
