"""Grouped matmul: rows sorted by expert, each times its own expert's matrix; the dispatch
point for kernels over stacks of expert weights.

>>> import jax.numpy as jnp
>>> x, kernel = jnp.ones((5, 2)), jnp.stack([jnp.ones((2, 3)), 2 * jnp.ones((2, 3))])
>>> grouped_matmul(x, kernel, jnp.array([3, 1]))[:, 0].tolist()
[2.0, 2.0, 2.0, 4.0, 0.0]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.core.registry import Registry
from ziggurat.kernels.grouped_matmul.blocked import blocked_matmul, blocked_quantized_matmul
from ziggurat.kernels.grouped_matmul.reference import reference_matmul, row_groups
from ziggurat.kernels.linear import (
    LoraWeight,
    ObservedWeight,
    QuantizedWeight,
    dense,
    is_quantized,
    rounded_activations,
)
from ziggurat.kernels.placement import PORTABLE, platform

__all__ = ["IMPLEMENTATIONS", "PREFERRED", "grouped_matmul", "row_groups"]


def _ragged(x: Array, kernel: Array, sizes: Array) -> Array:
    out = jax.lax.ragged_dot(x, kernel, sizes.astype(jnp.int32))
    rows = jax.lax.broadcasted_iota(jnp.int32, out.shape, 0)
    return jnp.where(rows < sizes.sum(), out, 0)


IMPLEMENTATIONS: Registry[Callable[[Array, Array, Array], Array]] = Registry(
    "grouped matmul implementation"
)
IMPLEMENTATIONS.add("reference", reference_matmul)
IMPLEMENTATIONS.add("blocked", blocked_matmul)
IMPLEMENTATIONS.add("ragged", _ragged)

PREFERRED: dict[str, str] = {
    "cpu": "blocked",
    "gpu": "ragged",
    "tpu": "ragged",
    PORTABLE: "blocked",
}
"""Implementation that ``auto`` selects, by the platform that a program is compiled for."""


def grouped_matmul(
    x: Float[Array, "n d"],
    kernel: Float[Array, "e d f"] | QuantizedWeight | LoraWeight | ObservedWeight,
    sizes: Int[Array, " e"],
    *,
    implementation: str = "auto",
) -> Float[Array, "n f"]:
    r"""Every row times the matrix of its group, :math:`y_i = x_i W_{g(i)}`; nothing is dropped.

    ``ragged`` is ``jax.lax.ragged_dot``, which has kernels on TPU and GPU. XLA:CPU expands it to
    every row times every matrix; ``blocked`` computes only the matmuls that are needed, and
    reads only the matrices that have rows (``benchmarks/grouped_matmul.py``).

    Args:
        x: rows sorted by group: the first ``sizes[0]`` belong to group 0, and so on. Rows beyond
            the sum of ``sizes`` belong to none; their result and gradient are 0.
        kernel: a matrix per group. Of a quantised one, matrices that have rows are dequantised,
            one at a time, by ``auto`` and ``blocked``; other implementations make it an array
            first. Where its format has a type of activations, rows are rounded to it, each with
            scales of its own. An adapted one is taken part by part if its base is quantised, else
            made an array.
        sizes: rows of each group, 0 allowed; their sum is at most ``n``.
        implementation: ``auto``, or a name of :data:`IMPLEMENTATIONS`.

    Returns:
        Results of the matmuls, accumulated in float32, in the type of ``x``. Differentiable in
        ``x`` and ``kernel``, backward mode only for ``blocked``.

    Raises:
        ShapeError: shapes do not fit together.
        ConfigError: no such implementation.

    Paper: Gale et al. 2022 (dropless mixtures of experts), https://arxiv.org/abs/2211.15841.
    """
    if x.ndim != 2 or kernel.ndim != 3 or sizes.shape != tuple(kernel.shape[:1]):
        raise ShapeError(
            "grouped_matmul",
            found=f"x {list(x.shape)}, kernel {list(kernel.shape)}, sizes {list(sizes.shape)}",
            expected="[n, d], [e, d, f] and [e]",
        )
    if x.shape[1] != kernel.shape[1]:
        raise ShapeError(
            "grouped_matmul",
            found=f"rows of {x.shape[1]} channels",
            expected=f"{kernel.shape[1]} as the kernel has",
        )
    if isinstance(kernel, ObservedWeight):
        return grouped_matmul(x, kernel.told(x, sizes), sizes, implementation=implementation)
    if isinstance(kernel, LoraWeight) and is_quantized(kernel.base):
        base, thin = (
            grouped_matmul(x, part, sizes, implementation=implementation)
            for part in (kernel.base, kernel.a)
        )  # the adapter multiplies what is not rounded
        added = grouped_matmul(thin, kernel.b, sizes, implementation=implementation)
        return base + kernel.scale * added
    if isinstance(kernel, QuantizedWeight):
        x = rounded_activations(x, kernel)
        if implementation in ("auto", "blocked"):
            return blocked_quantized_matmul(x, kernel, sizes)
    if isinstance(kernel, (QuantizedWeight, LoraWeight)):
        kernel = dense(kernel).astype(x.dtype)
    if implementation == "auto":
        implementation = PREFERRED.get(platform(), "ragged")
    return IMPLEMENTATIONS[implementation](x, kernel, sizes)
