"""Heads of encoders: logits of a row's vector, of every state, or of every token id."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ziggurat.kernels.linear import Weight, project_rows
from ziggurat.nn.linear import Linear, constant
from ziggurat.nn.mlp import ACTIVATIONS, Activation
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Config of a :class:`Transform`."""

    activation: Activation
    bias: bool = True
    """A bias on the matmul."""
    norm: NormConfig | None = None
    """Norm behind the activation."""
    outputs: int | None = None
    """Width behind it; default that before it."""

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "Transform":
        return Transform(self, width, std, precision, rngs)


class Transform(nnx.Module):
    r"""Layer :math:`N(\sigma(xW + b))` before a head's output matrix."""

    def __init__(
        self, c: TransformConfig, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        axes = ("embed", "mlp")
        self.dense = Linear(
            width, c.outputs or width, axes, bias=c.bias, std=std, precision=precision, rngs=rngs
        )
        self.norm = c.norm and c.norm.build(c.outputs or width, precision)
        self.activation = c.activation

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... e"]:
        x = ACTIVATIONS[self.activation](self.dense(x))
        return x if self.norm is None else self.norm(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitHeadConfig:
    """Config of a :class:`LogitHead`."""

    reads: Literal["pooled", "states"]
    """A row's pooled vector (a classifier of texts or images), or every state (of tokens)."""
    outputs: int | None
    """Logits; ``None``: one for each token id, by the encoder's own embedding (masked language
    modelling)."""
    bias: bool = True
    """A bias on the logits."""
    transform: TransformConfig | None = None
    """Layer before the output matrix."""

    def build(
        self, width: int, vocab: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "LogitHead":
        """The head over vectors of ``width``, of an encoder of ``vocab`` token ids."""
        return LogitHead(self, width, vocab, std, precision, rngs)


class LogitHead(nnx.Module):
    r"""Logits :math:`T(x) W + b` in float32, where ``T`` is a :class:`Transform` or nothing."""

    def __init__(
        self,
        c: LogitHeadConfig,
        width: int,
        vocab: int,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        transform, outputs, axes = c.transform, c.outputs, ("embed", None)
        self.transform = transform and transform.build(width, std, precision, rngs)
        self.out = (
            None
            if outputs is None
            else Linear(width, outputs, axes, bias=c.bias, std=std, precision=precision, rngs=rngs)
        )
        own = outputs is None and c.bias
        self.bias = constant(0.0, (vocab,), ("vocab",), precision) if own else None

    def __call__(
        self, x: Float[Array, "... d"], table: Weight | None = None
    ) -> Float[Array, "... n"]:
        """Logits.

        Args:
            x: pooled vectors or states.
            table: the encoder's embedding, for a head without an output matrix of its own.
        """
        x = x if self.transform is None else self.transform(x)
        if self.out is not None:
            return self.out(x).astype(jnp.float32)
        assert table is not None
        logits = project_rows(x, table)
        if self.bias is None:
            return logits
        return logits + self.bias[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
