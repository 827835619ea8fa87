"""Feed-forward blocks."""

from collections.abc import Callable
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.mesh import constrain
from ziggurat.nn.linear import Linear
from ziggurat.nn.precision import Precision

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class GatedMLP(nnx.Module):
    r"""Gated feed-forward block :math:`y = (\sigma(xW_g) \odot xW_u) W_d`.

    Paper: Shazeer 2020 (SwiGLU and kin), https://arxiv.org/abs/2002.05202.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Activation,
        bias: bool,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(d_in: int, d_out: int, axes: tuple[str, str]) -> Linear:
            return Linear(d_in, d_out, axes, bias=bias, std=std, precision=precision, rngs=rngs)

        self.gate = linear(width, hidden, ("embed", "mlp"))
        self.up = linear(width, hidden, ("embed", "mlp"))
        self.down = linear(hidden, width, ("mlp", "embed"))
        self.activation = activation

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        hidden = ACTIVATIONS[self.activation](self.gate(x)) * self.up(x)
        return self.down(constrain(hidden, ("batch", "sequence", "mlp")))
