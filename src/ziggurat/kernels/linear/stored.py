"""Products of a few rows of activations with weights as they are stored, in C++ on CPUs.

One row times a matrix is a matter of reading the matrix once. XLA:CPU reads float32 at about three
quarters of the memory's speed, and what is stored in other types twenty times slower than that,
since it converts the weight first (``benchmarks/decode_cpu.py``). Here weights are converted in
registers, in the order in which they lie in memory, and several matrices that the same activations
meet (queries, keys and values; gate and up) share one call. Sums are taken in float32, part by
part, so results differ from the definition's by rounding only.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.cpu.operation import operation, usable
from ziggurat.kernels.linear.packed import BLOCK, FLOATS, INTEGERS, PackedWeight
from ziggurat.kernels.linear.quantized import (
    FOUR_BIT,
    QuantizedWeight,
    Weight,
    WeightFormat,
    qwix_product,
)
from ziggurat.kernels.placement import one_device

MOST_ROWS = 32
"""Rows of activations up to which a float matrix is multiplied here; more are XLA's."""
MOST_TOGETHER = 8
"""Weights in one call."""
_STORED = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3, "nf4": 4}
_KERNEL, _TABLE, _PANELS = range(3)
"""What the C++ calls the types, and how weights lie."""


def serves(x: Any, weights: Sequence[Weight | PackedWeight], axis: int) -> bool:
    """Whether the products of ``x`` with these weights can be taken here, in one call.

    The program may still turn out to be one that XLA partitions, or that is exported; then it gets
    the definition.

    Args:
        x: activations ``[..., d]``.
        weights: the matrices.
        axis: over which products sum: -2 of kernels, -1 of tables.
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
    if isinstance(first, QuantizedWeight):
        return all(_reads(weight, first, axis) for weight in weights)
    floats = isinstance(first, jax.Array) and str(first.dtype) in FLOATS
    alike = floats and all(isinstance(w, jax.Array) and w.dtype == first.dtype for w in weights)
    return alike and x.size // x.shape[-1] <= MOST_ROWS


def _reads(weight: Any, first: QuantizedWeight, axis: int) -> bool:
    if not isinstance(weight, QuantizedWeight) or weight.format != first.format:
        return False
    kind, tile = weight.format.weight, weight.format.tile_size
    return (
        kind in INTEGERS
        and weight.format.activation is None
        and (kind not in FOUR_BIT or weight.shape[axis] % 2 == 0)
        and (tile is None or tile % BLOCK == 0)
        and weight.axis % weight.ndim == axis % weight.ndim
    )


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
            expected=f"float32 on a CPU with built kernels; floats: at most {MOST_ROWS} rows",
            fix="use 'auto'; ziggurat kernels list says what is built",
        )
    return products(x, [kernel], -2)[0]


def products(
    x: Float[Array, "... d"], weights: Sequence[Weight | PackedWeight], axis: int
) -> list[Float[Array, "... f"]]:
    """``x`` times each of the weights, which :func:`serves` has approved; float32."""
    rows, first, k = x.reshape(-1, x.shape[-1]), weights[0], x.shape[-1]
    format = None if isinstance(first, jax.Array) else first.format
    given: dict[str, Any] = {
        "stored": _STORED[str(first.dtype) if format is None else format.weight],
        "layout": _TABLE if axis == -1 else _KERNEL,
        "tile": k if format is None else format.tile_size or k,
        "scaled": format is not None,
        "shifted": format is not None and not format.symmetric,
        "layered": False,
    }
    if isinstance(first, PackedWeight):
        given |= {"layout": _PANELS, "layered": first.index is not None}
        parts = [part for w in weights for part in (w.values, w.scale, w.zero_point)]
        parts.append(first.index)
        made = _project(rows, *[part for part in parts if part is not None], **given)
        made = [y[:, : w.outputs] for y, w in zip(made, weights)]
    else:
        if format is not None:
            weights = [weight.astype(x.dtype) for weight in weights]
        made = _project(rows, *jax.tree.leaves(weights), **given)
    return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in made]


def _shapes(x: Any, *parts: Any, **given: Any) -> list[jax.ShapeDtypeStruct]:
    size, layout = 1 + given["scaled"] + given["shifted"], given["layout"]
    values = parts[: len(parts) - given["layered"] : size]
    columns = [part.shape[-2 if layout == _TABLE else -1] for part in values]
    if layout == _PANELS:
        columns = [part.shape[-3] * n for part, n in zip(values, columns)]
    return [jax.ShapeDtypeStruct((x.shape[0], n), jnp.float32) for n in columns]


def _plain(
    x: Array,
    *parts: Array,
    stored: int,
    layout: int,
    tile: int,
    scaled: bool,
    shifted: bool,
    layered: bool,
) -> list[Array]:
    if layered:
        *stacks, index = parts
        parts = tuple(stack[index] for stack in stacks)
    if layout == _PANELS:
        parts = tuple(part.transpose(1, 0, 2).reshape(part.shape[1], -1) for part in parts)
    size, axis = 1 + scaled + shifted, -1 if layout == _TABLE else -2
    each = [parts[i : i + size] for i in range(0, len(parts), size)]
    if not scaled:
        floats = [values.astype(x.dtype) for (values,) in each]
        return [x @ (values.T if layout == _TABLE else values) for values in floats]
    tile_size = None if tile == x.shape[1] else tile
    names = {_STORED[name]: name for name in INTEGERS}
    format = WeightFormat(names[stored], tile_size=tile_size, symmetric=not shifted)
    weights = [
        QuantizedWeight(values, scale, zeros[0] if zeros else None, format, axis)
        for values, scale, *zeros in each
    ]
    return [qwix_product(x, weight, jnp.float32) for weight in weights]


_project = operation("project", _shapes, _plain)
