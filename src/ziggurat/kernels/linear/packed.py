"""Matrices laid out for the C++ matmul: in panels of columns, the layers of a stack together.

The columns of a panel lie side by side, input by input. A core then reads its panels from end to
end while their sums stay in its registers, which goes a quarter faster than by the rows of a whole
matrix (``benchmarks/decode_cpu.py``, ``docs/adr/0015``).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ziggurat.core.pytrees import Leaf
from ziggurat.kernels.cpu.library import available
from ziggurat.kernels.linear.quantized import QuantizedWeight, Weight, WeightFormat
from ziggurat.kernels.linear.weight_types import FOUR_BIT, WeightType
from ziggurat.kernels.placement import one_device, platform
from ziggurat.kernels.weight_types import BUILT_IN

PANEL = 64
"""Columns of a panel."""
BLOCK = 32
"""Tiles of scales are multiples of it."""
FLOATS = ("float32", "bfloat16")
_NUMBERS = {name: kind.cpp for name, kind in BUILT_IN.items() if kind.cpp is not None}
INTEGERS: tuple[WeightType, ...] = tuple(sorted(_NUMBERS, key=_NUMBERS.__getitem__))
"""Quantised types that the C++ code reads, in the order of its enumeration, which begins with
:data:`FLOATS`."""
GROWTH = 1.2
"""Bound of the size in panels, whose scales are float32, relative to the size as stored."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedWeight:
    """A kernel or table packed in panels for the C++ matmul, or one layer of a stack of them, read
    in place.

    >>> kernel = np.arange(6, dtype=np.float32).reshape(1, 2, 3)  # [l, d, f]
    >>> packed = jax.tree.map(jnp.asarray, PackedWeight.of(kernel, -2))
    >>> packed.values.shape, packed.layer(jnp.int32(0)).dense().tolist()
    ((1, 1, 2, 64), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    """

    values: Leaf
    """``[..., p, d, 64]``; four-bit types have two values of the summed axis in each byte."""
    scale: Leaf
    """``[..., p, tiles, 64]``, or ``None``."""
    zero_point: Leaf
    """As ``scale``."""
    index: Int[Array, ""] | None
    """Which layer of the leading axis it is; ``None``: there is no such axis."""
    format: WeightFormat | None = dataclasses.field(metadata={"static": True})
    """``None``: floats."""
    axis: int = dataclasses.field(metadata={"static": True})
    """The axis over which matmuls sum: -2 of a kernel, -1 of a table."""
    outputs: int = dataclasses.field(metadata={"static": True})
    """Columns; the last panel may hold fewer than 64."""
    offset: Leaf = None
    """As ``scale``."""

    @classmethod
    def of(cls, weight: Any, axis: int) -> "PackedWeight":
        """Pack a matrix, or a stack of them; views where that is possible.

        Args:
            weight: a numpy array or a :class:`QuantizedWeight` of them, as :func:`packs` allows.
            axis: over which matmuls sum.
        """
        outputs = weight.shape[-1 if axis == -2 else -2]
        if not isinstance(weight, QuantizedWeight):
            return cls(_panels(weight, axis), None, None, None, None, axis, outputs)
        if not weight.format.in_qwix:
            weight = jax.tree.map(np.asarray, weight.plain())
        zero, offset = (
            None if part is None else _panels(part, axis)
            for part in (weight.zero_point, weight.offset)
        )
        values, scale = _panels(weight.qvalue, axis), _panels(weight.scale, axis)
        return cls(values, scale, zero, None, weight.format, axis, outputs, offset)

    def layer(self, index: Int[Array, ""]) -> "PackedWeight":
        """One layer of a stack, without a copy."""
        return dataclasses.replace(self, index=index)

    @property
    def stored(self) -> str:
        """Type of the values: one of :data:`FLOATS` or :data:`INTEGERS`."""
        return str(self.values.dtype) if self.format is None else self.format.weight

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the float matrix."""
        inputs = self.values.shape[-2] * (2 if self.stored in FOUR_BIT else 1)
        return (inputs, self.outputs) if self.axis == -2 else (self.outputs, inputs)

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> np.dtype:
        """Type of the float matrix."""
        return self.values.dtype if self.scale is None else self.scale.dtype

    def __getitem__(self, index: Any) -> "PackedWeight":
        """All of it for ``[...]``, as NNX reads a parameter."""
        assert index is Ellipsis
        return self

    def astype(self, dtype: DTypeLike) -> Float[Array, "..."]:
        """The matrix as an array."""
        return self.dense().astype(dtype)

    def unpacked(self) -> Weight:
        """The matrix as it was before it was packed, its layer cut out."""

        def flat(part: Leaf) -> Leaf:
            if part is None:
                return None
            part = part if self.index is None else part[self.index]
            order = (1, 0, 2) if self.axis == -2 else (0, 2, 1)
            part = part.transpose(order)
            wide = (part.shape[0], -1) if self.axis == -2 else (-1, part.shape[2])
            part = part.reshape(wide)
            return part[:, : self.outputs] if self.axis == -2 else part[: self.outputs]

        parts = (self.values, self.scale, self.zero_point, self.offset)
        values, scale, zero, offset = map(flat, parts)
        if self.format is None:
            return values
        return QuantizedWeight(values, scale, zero, self.format, self.axis, offset=offset)

    def dense(self) -> Float[Array, "..."]:
        """The matrix as an array."""
        whole = self.unpacked()
        return whole.dequantized() if isinstance(whole, QuantizedWeight) else whole

    def rows(self, ids: Int[Array, "..."]) -> Float[Array, "... d"]:
        """Rows of a table."""

        def taken(part: Leaf) -> Leaf:
            return None if part is None else part[ids // PANEL, :, ids % PANEL]

        parts = (self.values, self.scale, self.zero_point, self.offset)
        values, scale, zero, offset = map(taken, parts)
        if self.format is None:
            return values
        whole = QuantizedWeight(values, scale, zero, self.format, -1, offset=offset)
        return whole.dequantized()


def packs(weight: Any, axis: int) -> bool:
    """Whether programs here multiply float32 by a matrix like this, or by the layers of a stack,
    in C++ once it is packed: one CPU device, built kernels, a type that they know."""
    if not (platform() == "cpu" and one_device() and available("project")):
        return False
    inputs = weight.shape[axis]
    if isinstance(weight, np.ndarray | jax.Array):
        return str(weight.dtype) in FLOATS and inputs % BLOCK == 0
    if not isinstance(weight, QuantizedWeight):
        return False  # an adapted one
    summed = weight.axis % weight.ndim == axis % weight.ndim
    known = knows(weight.format) and summed and weight.dtype == jnp.float32 and inputs % BLOCK == 0
    return known and (weight.format.in_qwix or _plain_bytes(weight) <= GROWTH * weight.nbytes)


def knows(format: WeightFormat) -> bool:
    """Whether the C++ matmul supports a format of quantised weights, its scales made plain."""
    tiled = format.tile_size is None or format.tile_size % BLOCK == 0
    read = format.weight in INTEGERS and not format.ordered
    return read and format.activation is None and tiled


def _plain_bytes(weight: QuantizedWeight) -> int:
    scales = math.prod(weight.scale.shape) * 4 * (1 if weight.offset is None else 2)
    return math.prod(weight.qvalue.shape) + scales


def _panels(part: np.ndarray, axis: int) -> np.ndarray:
    """``[..., d, f]``, of a table ``[..., f, d]``, as ``[..., p, d, 64]``."""
    columns = part.ndim - (1 if axis == -2 else 2)
    count = math.ceil(part.shape[columns] / PANEL)
    if missing := count * PANEL - part.shape[columns]:
        padding = [(0, 0)] * part.ndim
        padding[columns] = (0, missing)
        part = np.pad(part, padding)
    shape = (*part.shape[:columns], count, PANEL, *part.shape[columns + 1 :])
    return np.swapaxes(part.reshape(shape), -3 if axis == -2 else -2, -2 if axis == -2 else -1)
