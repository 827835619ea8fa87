"""Types of quantised values: their bits, how these lie in bytes, and what a code stands for.

Values of fewer than eight bits lie in planes of 4, 2 or 1 bits, each a power of two that fills
bytes: five bits are a plane of four and one of one. In every plane the first value of the summed
axis is in the low bits.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

WeightType = Literal[
    "int8",
    "int4",
    "nf4",
    "fp8_e4m3",
    "fp8_e5m2",
    "int2",
    "int3",
    "int5",
    "int6",
    "uint2",
    "uint3",
    "uint4",
    "uint5",
    "uint6",
    "uint8",
    "fp4_e2m1",
    "fp4_bitsandbytes",
    "iq4",
]
"""Types of weights: integers with and without sign, 8-bit floats, and 4-bit codes of a table: the
normal float of QLoRA, the 4-bit float of MXFP4 and NVFP4, that of bitsandbytes, and llama.cpp's."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of the 4-bit float with two bits of exponent (Open Compute Project, Microscaling
Formats 1.0)."""
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""Twelve times the magnitudes of bitsandbytes' 4-bit float, in the order of its codes."""
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


Codes = UInt8[Array, "..."] | UInt8[np.ndarray, "..."]
"""Unsigned codes, or bytes of them."""


@dataclasses.dataclass(frozen=True)
class ValueType:
    """How values of one type are stored."""

    low: int = 8
    """Bits in the first plane; 8: a whole byte each, of ``dtype``."""
    high: int = 0
    """Bits in the second plane, above those of the first."""
    bias: int = 0
    """Subtracted from a code."""
    twos_complement: bool = False
    """Whether a code of four bits is a signed integer."""
    table: tuple[float, ...] | None = None
    """Values of the codes, in order."""
    dtype: str = "uint8"
    """Of the stored array."""

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return self.low + self.high


TYPES: dict[str, ValueType] = {
    "int8": ValueType(dtype="int8"),
    "int4": ValueType(4, twos_complement=True),
    "nf4": ValueType(4, table=NF4),
    "fp8_e4m3": ValueType(dtype="float8_e4m3fn"),
    "fp8_e5m2": ValueType(dtype="float8_e5m2"),
    "int2": ValueType(2, bias=2),
    "int3": ValueType(2, 1, bias=4),
    "int5": ValueType(4, 1, bias=16),
    "int6": ValueType(4, 2, bias=32),
    "uint2": ValueType(2),
    "uint3": ValueType(2, 1),
    "uint4": ValueType(4),
    "uint5": ValueType(4, 1),
    "uint6": ValueType(4, 2),
    "uint8": ValueType(),
    "fp4_e2m1": ValueType(4, table=(*E2M1, *(-x for x in E2M1))),
    "fp4_bitsandbytes": ValueType(4, table=tuple(s * x / 12 for s in (1, -1) for x in _FP4)),
    "iq4": ValueType(4, table=tuple(float(x) for x in _IQ4)),
}
"""Each type of :data:`WeightType`. The table of ``iq4`` is ggml's ``kvalues_iq4nl``
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h)."""
FOUR_BIT = frozenset(name for name, kind in TYPES.items() if kind.bits == 4)


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
