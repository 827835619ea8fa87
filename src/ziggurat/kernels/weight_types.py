"""Types of quantised values: one record for each, from which all else follows.

A record says how values lie in bytes, what a code stands for, and where the type may be used: in
recipes, with quantised activations, in the C++ matmul, by Qwix. Recipes, packing, matmuls and
checkpoints take every type that is registered here. No JAX here.

>>> WEIGHT_TYPES["int5"].bits, WEIGHT_TYPES["nf4"].levels[:2]
(5, (-1.0, -0.6961928009986877))
"""

import dataclasses

from ziggurat.core.registry import Registry

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


@dataclasses.dataclass(frozen=True)
class ValueType:
    """How values of one type are stored, what they are, and where they may be used."""

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
    """Type of the stored array."""
    qwix: str | None = None
    """Qwix's name of the type; Qwix then quantises and multiplies. ``None``: values are rounded to
    the nearest level, and matmuls dequantise."""
    recipe: bool = True
    """Whether recipes may quantise to it; else it is read from other programs' files only."""
    activations: tuple[str, ...] = ()
    """Types of activations that it may be multiplied with."""
    zero_point: bool = False
    """Whether recipes may give it zero points (``symmetric = false``)."""
    cpp: int | None = None
    """Number in the enumeration ``Stored`` of ``kernels/cpu/source/project.h``; ``None``: the C++
    matmul does not read it."""

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return self.low + self.high

    @property
    def per_byte(self) -> int:
        """Most values that one stored byte holds; the summed axis is a multiple of it."""
        return 8 // min(self.low, self.high or self.low)

    @property
    def levels(self) -> tuple[float, ...]:
        """Values of all codes, in the order of the codes, of a type of fewer than eight bits."""
        if self.table is not None:
            return self.table
        codes = range(1 << self.bits)
        if self.twos_complement:
            half = 1 << (self.bits - 1)
            return tuple(float((code ^ half) - half) for code in codes)
        return tuple(float(code - self.bias) for code in codes)


def _read(*bits: int, bias: int = 0) -> ValueType:
    """Integers of other programs' files."""
    return ValueType(*bits, bias=bias, recipe=False)


def _table(table: tuple[float, ...], cpp: int) -> ValueType:
    """Four-bit codes of other programs' files."""
    return ValueType(4, table=table, recipe=False, cpp=cpp)


BUILT_IN: dict[str, ValueType] = {
    "int8": ValueType(dtype="int8", qwix="int8", activations=("int8",), zero_point=True, cpp=2),
    "int4": ValueType(
        4, twos_complement=True, qwix="int4", activations=("int8",), zero_point=True, cpp=3
    ),
    "nf4": ValueType(4, table=NF4, qwix="nf4", cpp=4),
    "fp8_e4m3": ValueType(dtype="float8_e4m3fn", qwix="float8_e4m3fn", activations=("fp8_e4m3",)),
    "fp8_e5m2": ValueType(dtype="float8_e5m2", qwix="float8_e5m2"),
    "int2": _read(2, bias=2),
    "int3": _read(2, 1, bias=4),
    "int5": _read(4, 1, bias=16),
    "int6": _read(4, 2, bias=32),
    "uint2": _read(2),
    "uint3": _read(2, 1),
    "uint4": dataclasses.replace(_read(4), cpp=5),
    "uint5": _read(4, 1),
    "uint6": _read(4, 2),
    "uint8": _read(),
    "iq4": _table(tuple(float(x) for x in _IQ4), 6),
    "fp4_e2m1": _table((*E2M1, *(-x for x in E2M1)), 7),
    "fp4_bitsandbytes": _table(tuple(s * x / 12 for s in (1, -1) for x in _FP4), 8),
}
"""Types that come with the package: integers with and without sign, 8-bit floats, and codes of a
table: the normal float of QLoRA, the 4-bit float of MXFP4 and NVFP4, that of bitsandbytes, and
llama.cpp's."""
WEIGHT_TYPES: Registry[ValueType] = Registry("weight type")
"""All types by name. Do not list its names while modules are imported: listing loads plugins."""
for _name, _type in BUILT_IN.items():
    WEIGHT_TYPES.add(_name, _type)
