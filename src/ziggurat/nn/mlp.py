"""Feed-forward blocks."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ziggurat.mesh import constrain
from ziggurat.nn.linear import Linear, apply_each
from ziggurat.nn.precision import Precision

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "tanh"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedMlpConfig:
    """Config of a :class:`GatedMLP`."""

    hidden: int
    """Width between the two matmuls."""
    activation: Activation
    """Gate function."""
    bias: bool = False
    """Biases on all three projections."""

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "GatedMLP":
        return GatedMLP(width, self, std=std, precision=precision, rngs=rngs)


class GatedMLP(nnx.Module):
    r"""Gated feed-forward block :math:`y = (\sigma(xW_g) \odot xW_u) W_d`.

    Paper: Shazeer 2020 (SwiGLU and kin), https://arxiv.org/abs/2002.05202.
    """

    def __init__(
        self,
        width: int,
        c: GatedMlpConfig,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(d_in: int, d_out: int, axes: tuple[str, str]) -> Linear:
            return Linear(d_in, d_out, axes, bias=c.bias, std=std, precision=precision, rngs=rngs)

        self.gate = linear(width, c.hidden, ("embed", "mlp"))
        self.up = linear(width, c.hidden, ("embed", "mlp"))
        self.down = linear(c.hidden, width, ("mlp", "embed"))
        self.activation = c.activation

    def __call__(
        self, x: Float[Array, "b t d"], counted: Bool[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b t d"], None]:
        """``y``, and no router's report."""
        gate, up = apply_each((self.gate, self.up), x)
        # For the backward pass keep the two matmuls only: what lies between the gate and its
        # activation is cheap to compute again, and three arrays of this width to store.
        gated = jax.checkpoint(
            lambda gate, up: ACTIVATIONS[self.activation](gate) * up, prevent_cse=False
        )
        hidden = gated(gate, up)
        return self.down(constrain(hidden, ("batch", "sequence", "mlp"))), None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainMlpConfig:
    """Config of a :class:`PlainMLP`."""

    hidden: int
    """Width between the two matmuls."""
    activation: Activation
    """Function between them."""
    bias: bool = True
    """Biases on both projections."""

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "PlainMLP":
        return PlainMLP(width, self, std=std, precision=precision, rngs=rngs)


class PlainMLP(nnx.Module):
    r"""Feed-forward block without a gate :math:`y = \sigma(xW_u + b_u) W_d + b_d` (GPT-2, BERT).

    Paper: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.3.
    """

    def __init__(
        self,
        width: int,
        c: PlainMlpConfig,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(d_in: int, d_out: int, axes: tuple[str, str]) -> Linear:
            return Linear(d_in, d_out, axes, bias=c.bias, std=std, precision=precision, rngs=rngs)

        self.up = linear(width, c.hidden, ("embed", "mlp"))
        self.down = linear(c.hidden, width, ("mlp", "embed"))
        self.activation = c.activation

    def __call__(
        self, x: Float[Array, "b t d"], counted: Bool[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b t d"], None]:
        """``y``, and no router's report."""
        hidden = ACTIVATIONS[self.activation](self.up(x))
        return self.down(constrain(hidden, ("batch", "sequence", "mlp"))), None
