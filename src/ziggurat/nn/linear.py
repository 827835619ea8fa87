"""Linear layers and embeddings, with logical axis names on every parameter."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.kernels.linear import project, project_each, take_rows
from ziggurat.nn.precision import Precision


def parameter(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    std: float,
    precision: Precision,
) -> nnx.Param:
    """A parameter drawn from N(0, std), carrying the logical names of its dimensions."""
    draw = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(draw.astype(precision.param_dtype), axes=axes)


def constant(
    value: float, shape: tuple[int, ...], axes: tuple[str | None, ...], p: Precision
) -> nnx.Param:
    """A parameter that starts at one value (norm scales, biases)."""
    return nnx.Param(jnp.full(shape, value, p.param_dtype), axes=axes)


def add(x: Float[Array, "*n"], vector: Float[Array, "*m"]) -> Float[Array, "*n"]:
    """``x + vector`` in the type of ``x``; the gradient of a ``vector`` that is broadcast is added
    up in float32, as the sum over all tokens that it is."""
    wide = x.astype(_sums(x)) + _beside(x, vector)
    return wide.astype(x.dtype)


def multiply(x: Float[Array, "*n"], vector: Float[Array, "*m"]) -> Float[Array, "*n"]:
    """``x * vector`` in the type of ``x``, with the gradient of ``vector`` summed in float32."""
    wide = x.astype(_sums(x)) * _beside(x, vector)
    return wide.astype(x.dtype)


def _beside(x: Array, vector: Array) -> Array:
    """``vector`` with the rank of ``x``, rounded to its type, in the type of sums over it."""
    return jax.lax.broadcast_to_rank(vector.astype(x.dtype).astype(_sums(x)), x.ndim)


def _sums(x: Array) -> jnp.dtype:
    """The type in which a gradient over ``x`` is added up: float32 for anything narrower."""
    return x.dtype if x.dtype.itemsize > 4 else jnp.dtype(jnp.float32)


class Linear(nnx.Module):
    r"""Affine map :math:`y = xW + b` over the last dimension.

    Args:
        d_in: input width.
        d_out: output width.
        axes: logical names of ``(d_in, d_out)``; None: the same on all devices.
        bias: whether ``b`` exists.
        std: standard deviation of the initial weights.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        axes: tuple[str | None, str | None],
        *,
        bias: bool,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.kernel = parameter(rngs, (d_in, d_out), axes, std, precision)
        self.bias = constant(0.0, (d_out,), axes[1:], precision) if bias else None

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... f"]:
        return self.shifted(project(x, self.kernel[...]))

    def shifted(self, y: Float[Array, "... f"]) -> Float[Array, "... f"]:
        """Results of a matmul with the kernel, plus the bias."""
        return y if self.bias is None else add(y, self.bias[...])


def apply_each(layers: Sequence[Linear], x: Float[Array, "... d"]) -> list[Float[Array, "... f"]]:
    """Outputs of several layers for one ``x``, in one kernel call where a kernel can."""
    products = project_each(x, [layer.kernel[...] for layer in layers])
    return [layer.shifted(y) for layer, y in zip(layers, products)]


class Embedding(nnx.Module):
    """A table ``[v, d]``: token ids in, vectors out; also serves as the output head when tied."""

    def __init__(self, vocab: int, width: int, *, std: float, precision: Precision, rngs: nnx.Rngs):
        self.table = parameter(rngs, (vocab, width), ("vocab", "embed"), std, precision)
        self.compute = precision.compute

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        return take_rows(self.table[...], ids).astype(self.compute)
