"""Matmuls with weights as they are stored, in C++ on CPUs.

One row times a matrix is a matter of reading the matrix once. XLA:CPU reads float32 at about three
quarters of the memory's speed, and what is stored in other types twenty times slower than that,
since it converts the weight first (``benchmarks/decode_cpu.py``). Here weights are converted in
registers, those of a :class:`PackedWeight` in the order in which they lie in memory, and several
matrices that the same activations meet (queries, keys and values; gate and up) share one call. Sums
are taken in float32, part by part, so results differ from the definition's by rounding only.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.cpu.operation import operation, usable
from ziggurat.kernels.linear.packed import FLOATS, INTEGERS, PANEL, PackedWeight, knows
from ziggurat.kernels.linear.quantized import (
    QuantizedWeight,
    Weight,
    WeightFormat,
    qwix_product,
)
from ziggurat.kernels.linear.weight_types import FOUR_BIT, WeightType
from ziggurat.kernels.placement import one_device

MOST_TOGETHER = 8
"""Weights in one call."""
_STORED = {name: number for number, name in enumerate((*FLOATS, *INTEGERS))}
"""Numbers of the types in the C++ code."""


def serves(x: Array, weights: Sequence[Weight | PackedWeight], axis: int) -> bool:
    """Whether one C++ call supports the matmuls of ``x`` with these weights.

    The program may still turn out to be one that XLA partitions, or that is exported; then it gets
    the definition.

    Args:
        x: activations ``[..., d]``.
        weights: the matrices.
        axis: over which matmuls sum: -2 of kernels, -1 of tables.
    """
    if not (one_device() and usable("project", x)) or len(weights) > MOST_TOGETHER:
        return False
    if 0 in x.shape or not all(weight.ndim == 2 for weight in weights):
        return False
    first = weights[0]
    if isinstance(first, PackedWeight):
        return all(
            isinstance(w, PackedWeight)
            and (w.stored, w.format, w.axis) == (first.stored, first.format, axis)
            and w.index is first.index
            for w in weights
        )
    return axis == -2 and all(_reads(weight, first) for weight in weights)


def _reads(kernel: Any, first: Any) -> bool:
    if not isinstance(kernel, QuantizedWeight) or kernel.format != first.format:
        return False
    whole = kernel.format.weight not in FOUR_BIT or kernel.shape[-2] % 2 == 0
    plain = knows(kernel.format) and kernel.format.in_qwix
    return plain and whole and kernel.axis in (-2, 0)


def stored_project(
    x: Float[Array, "... d"], kernel: Weight | PackedWeight
) -> Float[Array, "... f"]:
    """``x @ kernel``.

    Raises:
        ConfigError: :func:`serves` says no.
    """
    if not serves(x, [kernel], -2):
        raise ConfigError(
            "linear implementation",
            found=f"'stored' for {x.dtype} and {kernel.dtype}",
            expected="float32 times a quantised kernel on a CPU with built kernels",
            fix="use 'auto'; ziggurat kernels list says what is built",
        )
    return products(x, [kernel], -2)[0]


def products(
    x: Float[Array, "... d"], weights: Sequence[Weight | PackedWeight], axis: int
) -> list[Float[Array, "... f"]]:
    """``x`` times each of the weights, which :func:`serves` has approved; float32."""
    rows, k = x.reshape(-1, x.shape[-1]), x.shape[-1]
    each: Sequence[Any] = weights
    first = each[0]
    format, packed = first.format, isinstance(first, PackedWeight)
    given: dict[str, Any] = {
        "stored": _STORED[first.stored if packed else format.weight],
        "tile": k if format is None else format.tile_size or k,
        "packed": packed,
        "scaled": format is not None,
        "shifted": format is not None and not format.symmetric,
        "offset": format is not None and format.offset,
        "layered": packed and first.index is not None,
    }
    if packed:
        parts = [part for w in each for part in (w.values, w.scale, w.zero_point, w.offset)]
        parts = [part for part in (*parts, first.index) if part is not None]
        made = [y[:, : w.outputs] for y, w in zip(_project(rows, *parts, **given), each)]
    else:
        made = _project(rows, *jax.tree.leaves([w.astype(x.dtype) for w in each]), **given)
    return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in made]


def _shapes(x: ShapedArray, *parts: ShapedArray, **given: Any) -> list[jax.ShapeDtypeStruct]:
    size = 1 + given["scaled"] + given["shifted"] + given["offset"]
    values = parts[: len(parts) - given["layered"] : size]
    columns = [part.shape[-3] * PANEL if given["packed"] else part.shape[-1] for part in values]
    return [jax.ShapeDtypeStruct((x.shape[0], n), jnp.float32) for n in columns]


def _plain(
    x: Array,
    *parts: Array,
    stored: int,
    tile: int,
    packed: bool,
    scaled: bool,
    shifted: bool,
    offset: bool,
    layered: bool,
) -> list[Array]:
    if layered:
        *stacks, index = parts
        parts = tuple(stack[index] for stack in stacks)
    if packed:
        parts = tuple(part.transpose(1, 0, 2).reshape(part.shape[1], -1) for part in parts)
    size = 1 + scaled + shifted + offset
    each = [parts[i : i + size] for i in range(0, len(parts), size)]
    if not scaled:
        return [x @ kernel.astype(x.dtype) for (kernel,) in each]
    tile_size = None if tile == x.shape[1] else tile
    names: dict[int, WeightType] = {_STORED[name]: name for name in INTEGERS}
    kind = names[stored]
    format = WeightFormat(kind, tile_size=tile_size, symmetric=not shifted, offset=offset)
    kernels = [
        QuantizedWeight(
            values,
            scale,
            third[0] if shifted else None,
            format,
            -2,
            offset=third[0] if offset else None,
        )
        for values, scale, *third in each
    ]
    return [qwix_product(x, kernel, jnp.float32) for kernel in kernels]


_project = operation("project", _shapes, _plain)
