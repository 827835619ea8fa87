"""Projections: activations times a weight matrix, the dispatch point for GEMM kernels.

A weight is an array, a :class:`QuantizedWeight`, a :class:`LoraWeight` or, in a program that
decodes on a CPU, a :class:`PackedWeight`; the operations here take any of them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.core.registry import Registry
from ziggurat.kernels.choices import chosen
from ziggurat.kernels.linear import cpu, quantized, stored
from ziggurat.kernels.linear.cpu import is_product
from ziggurat.kernels.linear.lora import LoraWeight, is_adapted
from ziggurat.kernels.linear.observed import Observations, ObservedWeight
from ziggurat.kernels.linear.packed import PackedWeight, packs
from ziggurat.kernels.linear.quantized import (
    ActivationType,
    QuantizedWeight,
    Weight,
    WeightFormat,
    in_stored_order,
    is_quantized,
    rounded_activations,
)
from ziggurat.kernels.linear.weight_types import WeightType
from ziggurat.mesh import active_ways

__all__ = [
    "IMPLEMENTATIONS",
    "ActivationType",
    "LoraWeight",
    "Observations",
    "ObservedWeight",
    "PackedWeight",
    "QuantizedWeight",
    "Weight",
    "WeightFormat",
    "WeightType",
    "dense",
    "is_adapted",
    "is_product",
    "is_quantized",
    "is_weight_node",
    "packs",
    "project",
    "project_each",
    "project_rows",
    "rounded_activations",
    "take_rows",
]


def is_weight_node(node: object) -> bool:
    """For ``is_leaf``: whether a node of a parameter tree stands in the place of an array."""
    return is_quantized(node) or is_adapted(node)


def dense(weight: Weight | LoraWeight | PackedWeight) -> Float[Array, "..."]:
    """Convert a weight to an array, for an operation that has no path for its format."""
    if isinstance(weight, PackedWeight):
        return weight.dense()
    return weight.merged() if isinstance(weight, LoraWeight) else quantized.dense(weight)


def _flat(x: Array, kernel: Any) -> Array:
    rows = jnp.reshape(x, (-1, x.shape[-1]))
    out = quantized.product(rows, kernel) if is_quantized(kernel) else rows @ kernel
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def _batched(x: Array, kernel: Any) -> Array:
    if is_quantized(kernel):
        return quantized.product(x, kernel)
    return jnp.einsum("...d,df->...f", x, kernel)


IMPLEMENTATIONS: Registry[Callable[[Array, Any], Array]] = Registry("linear implementation")
IMPLEMENTATIONS.add("flat", _flat)
IMPLEMENTATIONS.add("batched", _batched)
IMPLEMENTATIONS.add("cpu", cpu.cpu_project)
IMPLEMENTATIONS.add("stored", stored.stored_project)


def project(
    x: Float[Array, "... d"],
    kernel: Weight | LoraWeight | PackedWeight | ObservedWeight,
    *,
    implementation: str = "auto",
) -> Float[Array, "... f"]:
    """``x @ kernel`` over the last dimension, in the type of ``x``.

    ``flat`` joins all leading dimensions into one before the matmul: on XLA:CPU a matmul with
    3-D activations takes about twice as long in the backward pass. ``batched`` keeps them apart,
    which a sequence sharded over a mesh needs (joined dimensions could not stay sharded); ``auto``
    takes it then. On one CPU device with built kernels it takes ``stored`` for packed and most
    quantised kernels, and ``cpu`` for many rows of float32; ``flat`` otherwise. An adapted kernel
    is taken part by part, so that its sum exists nowhere.

    >>> import jax.numpy as jnp
    >>> project(jnp.ones((2, 3, 4)), jnp.ones((4, 5))).shape
    (2, 3, 5)
    """
    if isinstance(kernel, ObservedWeight):
        kernel = kernel.told(x)
    if isinstance(kernel, LoraWeight):
        thin = project(project(x, kernel.a, implementation=implementation), kernel.b)
        return project(x, kernel.base, implementation=implementation) + kernel.scale * thin
    x, kernel = in_stored_order(x, kernel)
    if implementation == "auto":
        implementation = _choose(x, kernel)
    if implementation != "stored":
        kernel = kernel.unpacked() if isinstance(kernel, PackedWeight) else kernel
        kernel = kernel.astype(x.dtype)
    return IMPLEMENTATIONS[implementation](x, kernel)


def project_each(
    x: Float[Array, "... d"],
    kernels: Sequence[Weight | LoraWeight | PackedWeight | ObservedWeight],
) -> list[Float[Array, "... f"]]:
    """Multiply activations by several kernels, see :func:`project`; kernels of one format share a
    C++ call on CPU.

    >>> import jax.numpy as jnp
    >>> [y.shape for y in project_each(jnp.ones((2, 4)), [jnp.ones((4, 5)), jnp.ones((4, 3))])]
    [(2, 5), (2, 3)]
    """
    plain = [k for k in kernels if not isinstance(k, (LoraWeight, ObservedWeight))]
    alike = len(plain) == len(kernels) and {_choose(x, kernel) for kernel in plain} == {"stored"}
    if alike and stored.serves(x, plain, -2):
        return stored.products(x, plain, -2)
    return [project(x, kernel) for kernel in kernels]


def _choose(x: Array, kernel: Any) -> str:
    if active_ways("sequence") > 1:
        return "batched"
    if stored.serves(x, [kernel], -2):
        return "stored"
    if not isinstance(kernel, jax.Array) or not cpu.serves(x, kernel):
        return "flat"
    rows = math.prod(x.shape[:-1])
    return chosen("linear", rows) or ("cpu" if rows >= cpu.LEAST_ROWS else "flat")


def project_rows(x: Float[Array, "... d"], table: Weight | PackedWeight) -> Float[Array, "... v"]:
    """``x @ table.T`` in float32: hidden states to logits.

    >>> import jax.numpy as jnp
    >>> project_rows(jnp.ones((2, 3)), jnp.ones((5, 3))).shape
    (2, 5)
    """
    x, table = in_stored_order(x, table)
    if stored.serves(x, [table], -1):
        return stored.products(x, [table], -1)[0]
    table = table.unpacked() if isinstance(table, PackedWeight) else table
    table = table.astype(x.dtype)
    if isinstance(table, QuantizedWeight):
        return quantized.product(x, table, preferred=jnp.float32)
    return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)


def take_rows(
    table: Float[Array, "v d"] | QuantizedWeight | PackedWeight, ids: Int[Array, "*n"]
) -> Float[Array, "*n d"]:
    """Rows of a table; of a quantised one only those are dequantised.

    The gradient of the table is added up in float32: of a bfloat16 sum of n rows of equal size the
    error grows with n, to a quarter of the gradient at 4,096 tokens.
    """
    if isinstance(table, PackedWeight):
        return table.rows(ids)
    if isinstance(table, jax.Array) and table.dtype in (jnp.bfloat16, jnp.float16):
        return _narrow_rows(table, ids)
    if isinstance(table, QuantizedWeight):
        return table.rows(ids)
    return dense(jax.tree.map(lambda part: jnp.take(part, ids, axis=0), table))


@jax.custom_vjp
def _narrow_rows(table: Array, ids: Array) -> Array:
    return jnp.take(table, ids, axis=0)


def _narrow_rows_back(kept: tuple[Array, Array], d_rows: Array) -> tuple[Array, None]:
    ids, like = kept
    total = jnp.zeros(like.shape, jnp.float32)
    return total.at[ids].add(d_rows.astype(jnp.float32), mode="drop").astype(like.dtype), None


_narrow_rows.defvjp(lambda table, ids: (_narrow_rows(table, ids), (ids, table)), _narrow_rows_back)
