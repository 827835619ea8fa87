"""Products of float32 matrices on CPU by our C++ kernel, forward and both gradients."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.cpu.operation import operation, usable
from ziggurat.kernels.placement import one_device

LEAST_ROWS = 16
"""Fewer rows are not worth the copy of the matrix that the kernel makes."""


def serves(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether the kernel can take these arrays here."""
    return one_device() and usable("product", x, kernel)


def cpu_project(x: Float[Array, "... d"], kernel: Float[Array, "d f"]) -> Float[Array, "... f"]:
    """``x @ kernel`` with all leading dimensions joined.

    Raises:
        ConfigError: the kernel is not built, or not for this platform, type or sharding.
    """
    if not serves(x, kernel):
        raise ConfigError(
            "linear implementation",
            found=f"'cpu' for {x.dtype} and {kernel.dtype}",
            expected="float32 on one CPU device with built kernels",
            fix="use 'auto'; ziggurat kernels list says what is built",
        )
    rows = x.reshape(-1, x.shape[-1])
    return _product(rows, kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return multiply(x, kernel, transpose_a=False, transpose_b=False)[0]


def _forward(x: jax.Array, kernel: jax.Array):
    return _product(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], d_out: jax.Array):
    x, kernel = kept
    (d_x,) = multiply(d_out, kernel, transpose_a=False, transpose_b=True)
    (d_kernel,) = multiply(x, d_out, transpose_a=True, transpose_b=False)
    return d_x, d_kernel


_product.defvjp(_forward, _backward)


def _shapes(a, b, *, transpose_a: bool, transpose_b: bool):
    shape = a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1]
    return [jax.ShapeDtypeStruct(shape, jnp.float32)]


def _plain(a: jax.Array, b: jax.Array, *, transpose_a: bool, transpose_b: bool):
    return [(a.T if transpose_a else a) @ (b.T if transpose_b else b)]


multiply = operation("product", _shapes, _plain)
"""``[a @ b]``, each matrix as it is or transposed."""
