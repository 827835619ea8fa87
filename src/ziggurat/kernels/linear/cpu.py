"""Matmuls in float32 on CPU by our C++ kernel, forward and both gradients."""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.cpu.library import PREFIX
from ziggurat.kernels.cpu.operation import operation, usable
from ziggurat.kernels.placement import one_device

LEAST_ROWS = 16
"""Least rows for the kernel: fewer are not worth the copy of the matrix that the kernel makes."""


def serves(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether the C++ kernel supports these arrays on this machine."""
    return one_device() and usable("product", x, kernel)


def cpu_project(x: Float[Array, "... d"], kernel: Float[Array, "d f"]) -> Float[Array, "... f"]:
    """``x @ kernel``. The backward pass keeps ``x`` as it is, so that projections of the same
    activations keep them once.

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
    (out,) = multiply(x, kernel, transpose_a=False, transpose_b=False)
    return out


def _shapes(a, b, *, transpose_a: bool, transpose_b: bool):
    rows = a.shape[-1:] if transpose_a else a.shape[:-1]
    columns = b.shape[:-1] if transpose_b else b.shape[-1:]
    return [jax.ShapeDtypeStruct((*rows, *columns), jnp.float32)]


def _plain(a: jax.Array, b: jax.Array, *, transpose_a: bool, transpose_b: bool):
    (made,) = _shapes(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    out = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
    return [out.reshape(made.shape)]


def _gradient_of_a(d_out: jax.Array, b: jax.Array, *, transpose_a: bool, transpose_b: bool):
    if transpose_a:
        return multiply(b, d_out, transpose_a=transpose_b, transpose_b=True)[0]
    return multiply(d_out, b, transpose_a=False, transpose_b=not transpose_b)[0]


def _gradient_of_b(d_out: jax.Array, a: jax.Array, *, transpose_a: bool, transpose_b: bool):
    if transpose_b:
        return multiply(d_out, a, transpose_a=True, transpose_b=transpose_a)[0]
    return multiply(a, d_out, transpose_a=not transpose_a, transpose_b=False)[0]


multiply = operation("product", _shapes, _plain, (_gradient_of_a, _gradient_of_b))
"""``[a @ b]``, each as it is or transposed; all dimensions but the last count as one."""


def is_product(primitive: Primitive) -> bool:
    """Whether a primitive is the kernel's matmul, for rules of what a backward pass keeps."""
    return primitive.name == f"{PREFIX}product"
