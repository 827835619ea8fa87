"""The grouped matmul as a loop over blocks of rows, each of one group: plain XLA, for
backends without a ragged kernel.

A block starts at a group's row and may reach into the next group. Blocks are written in order, so
those rows are overwritten by their own group's block, and no row is moved or padded.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ziggurat.kernels.linear import QuantizedWeight, dense, is_quantized

MOST_ROWS = 128
"""Largest block: its matmul is large enough to hide the loop."""


def block_rows(rows: int, groups: int) -> int:
    """Rows of a block: about one block per group where groups are even.

    >>> block_rows(4, 8), block_rows(512, 8), block_rows(8192, 8)
    (1, 64, 128)
    """
    return min(MOST_ROWS, max(1, -(-rows // groups)))


@jax.custom_vjp
def blocked_matmul(
    x: Float[Array, "n d"], kernel: Float[Array, "e d f"], sizes: Int[Array, " e"]
) -> Float[Array, "n f"]:
    """Grouped matrix multiplication in blocks of rows, with the arguments and result of
    :func:`ziggurat.kernels.grouped_matmul.grouped_matmul`."""
    return _product(x, kernel, sizes, transposed=False)


@jax.custom_vjp
def blocked_quantized_matmul(
    x: Float[Array, "n d"], kernel: QuantizedWeight, sizes: Int[Array, " e"]
) -> Float[Array, "n f"]:
    """Grouped matmul by quantised matrices, see :func:`blocked_matmul`. Matrices that no row uses
    stay quantised; the others are dequantised one at a time. Differentiable in ``x``."""
    return _product(x, kernel, sizes, transposed=False)


def _matrix(kernel: Any, group: Array, dtype: DTypeLike) -> Array:
    """A group's matrix as an array."""

    def taken(part: Array) -> Array:
        if part.dtype.itemsize > 1 or not jnp.issubdtype(part.dtype, jnp.floating):
            return jax.lax.dynamic_index_in_dim(part, group, keepdims=False)
        # XLA:CPU has no 8-bit floats: it would make the whole stack float16 before the loop
        stored = jax.lax.bitcast_convert_type(part, jnp.uint8)
        one = jax.lax.dynamic_index_in_dim(stored, group, keepdims=False)
        return jax.lax.bitcast_convert_type(one, part.dtype)

    one = jax.tree.map(taken, kernel)
    return dense(one).astype(dtype) if is_quantized(kernel) else one


def _product(x: Array, kernel: Any, sizes: Array, *, transposed: bool) -> Array:
    n, size = x.shape[0], block_rows(x.shape[0], kernel.shape[0])
    width = kernel.shape[1] if transposed else kernel.shape[2]
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    padded = jnp.pad(x, ((0, size), (0, 0)))

    def block(index: Int[Array, ""] | int, out: Array) -> Array:
        group, at, _ = _place(index, sizes, size)
        rows = jax.lax.dynamic_slice_in_dim(padded, at, size)
        matrix = _matrix(kernel, group, x.dtype)
        some = jax.lax.dot_general(rows, matrix, contract, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(out, some.astype(out.dtype), at, 0)

    start = jnp.zeros((n + size, width), x.dtype)
    with jax.named_scope(_trips(n, kernel.shape[0], size)):
        out = jax.lax.fori_loop(0, _blocks(sizes, size).sum(), block, start)[:n]
    return jnp.where(jnp.arange(n)[:, None] < sizes.sum(), out, 0)


def _outer(x: Array, dy: Array, kernel: Array, sizes: Array) -> Array:
    """Gradient of the kernel, ``sum x_i dy_i`` over the rows of each group."""
    size = block_rows(x.shape[0], kernel.shape[0])
    x, dy = (jnp.pad(array, ((0, size), (0, 0))) for array in (x, dy))

    def block(index: Int[Array, ""] | int, total: Array) -> Array:
        group, at, end = _place(index, sizes, size)
        rows, back = (jax.lax.dynamic_slice_in_dim(array, at, size) for array in (x, dy))
        rows = jnp.where(at + jnp.arange(size)[:, None] < end, rows, 0)
        part = jax.lax.dot_general(
            rows, back, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        before = jax.lax.dynamic_index_in_dim(total, group, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(total, before + part, group, 0)

    start = jnp.zeros(kernel.shape, jnp.float32)
    with jax.named_scope(_trips(x.shape[0] - size, kernel.shape[0], size)):
        made = jax.lax.fori_loop(0, _blocks(sizes, size).sum(), block, start)
    return made.astype(kernel.dtype)


def _trips(rows: int, groups: int, size: int) -> str:
    """The scope that tells ``ziggurat.plan.work`` how often a loop runs whose length is known only
    to the device: full blocks, and one that is not full for each group."""
    return f"trips_{rows // size + groups}"


def _blocks(sizes: Array, size: int) -> Array:
    """Blocks of each group."""
    return -(-sizes // size)


def _place(index: Int[Array, ""] | int, sizes: Array, size: int) -> tuple[Array, Array, Array]:
    """A block's group, its first row, and the end of its group."""
    blocks = _blocks(sizes, size)
    last = jnp.cumsum(blocks)
    group = jnp.searchsorted(last, index, side="right")
    end = jnp.cumsum(sizes)[group]
    return group, end - sizes[group] + (index - (last - blocks)[group]) * size, end


def _forward(x: Array, kernel: Array, sizes: Array):
    return blocked_matmul(x, kernel, sizes), (x, kernel, sizes)


def _backward(kept: tuple[Array, Array, Array], dy: Array):
    x, kernel, sizes = kept
    return _product(dy, kernel, sizes, transposed=True), _outer(x, dy, kernel, sizes), None


def _quantized_forward(x: Array, kernel: QuantizedWeight, sizes: Array):
    return blocked_quantized_matmul(x, kernel, sizes), (kernel, sizes)


def _quantized_backward(kept: tuple[QuantizedWeight, Array], dy: Array):
    return _product(dy, *kept, transposed=True), None, None


blocked_matmul.defvjp(_forward, _backward)
blocked_quantized_matmul.defvjp(_quantized_forward, _quantized_backward)
