"""One vector of a row's states: first, last or mean state, their maximum, or learned attention."""

import dataclasses
from typing import Any, Literal, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.kernels.attention import AttentionMask, attention
from ziggurat.nn.block import MlpConfig
from ziggurat.nn.linear import Linear, add, parameter
from ziggurat.nn.mlp import ACTIVATIONS, Activation
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision

Pooling = Literal["first", "last", "mean", "max", "mean_sqrt_length", "first_and_mean"]
"""How states become one vector: that of the first or the last token, their mean, their largest by
channel, their sum over the root of their number, or the first state with the mean of the others
behind it (of twice the width)."""


def pool(
    hidden: Float[Array, "b t d"],
    mask: Int[Array, "b t"] | None,
    pooling: Pooling,
    ahead: int = 1,
) -> Float[Array, "b e"]:
    """One vector of each row's states, in float32.

    Args:
        hidden: the states.
        mask: 1 where a state counts; ``None``: all do.
        pooling: how.
        ahead: states of which ``first_and_mean`` leaves the mean: the first, and registers.
    """
    states = hidden.astype(jnp.float32)
    if pooling == "first":
        return states[:, 0]
    if pooling == "first_and_mean":
        rest = pool(hidden[:, ahead:], None if mask is None else mask[:, ahead:], "mean")
        return jnp.concatenate([states[:, 0], rest], axis=-1)
    if mask is None:
        mask = jnp.ones(hidden.shape[:2], jnp.int32)
    if pooling == "last":
        places = jnp.arange(mask.shape[1])[None]
        newest = jnp.max(jnp.where(mask > 0, places, 0), axis=1)
        return jnp.take_along_axis(states, newest[:, None, None], axis=1)[:, 0]
    seen = mask[..., None].astype(jnp.float32)
    if pooling == "max":
        return jnp.where(seen > 0, states, -1e9).max(1)
    count = jnp.maximum(seen.sum(1), 1e-9)
    root = pooling == "mean_sqrt_length"
    return (states * seen).sum(1) / (jnp.sqrt(count) if root else count)


@runtime_checkable
class PoolerConfig(Protocol):
    """Interface of a pooler: how an encoder's states become its vector."""

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> Any:
        """The module: ``(hidden, mask, inputs) -> [b, e]``."""
        ...

    def outputs(self, width: int) -> int:
        """Length of the vector, for an encoder of a width."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatePoolerConfig:
    """Config of a :class:`StatePooler`."""

    pooling: Pooling = "first"
    """Which states."""
    ahead: int = 1
    """States that are left out of the mean in ``first_and_mean``."""
    end_id: int | None = None
    """If given, the state of the first token with this id instead (CLIP); -1: of the first token
    whose id is largest."""
    norm: NormConfig | None = None
    """Norm of the vector, before the dense layer."""
    dense: int | None = None
    """Width of a dense layer; ``None``: no such layer."""
    bias: bool = True
    """A bias on the dense layer."""
    activation: Activation | None = None
    """Function after the dense layer."""

    def outputs(self, width: int) -> int:
        return self.dense or width * (1 + (self.pooling == "first_and_mean"))

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "StatePooler":
        return StatePooler(self, width, std, precision, rngs)


class StatePooler(nnx.Module):
    r"""Pooler :math:`\sigma(N(h) W + b)` of a row's pooled state ``h``, each part if configured."""

    def __init__(
        self, c: StatePoolerConfig, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        self.config, self.compute = c, precision.compute
        self.norm = c.norm and c.norm.build(width, precision)
        self.dense = (
            Linear(
                dataclasses.replace(c, dense=None).outputs(width), c.dense, ("embed", "mlp"),
                bias=c.bias, std=std, precision=precision, rngs=rngs,
            )
            if c.dense
            else None
        )  # fmt: skip

    def __call__(
        self,
        hidden: Float[Array, "b t d"],
        mask: Int[Array, "b t"] | None,
        inputs: Array,
    ) -> Float[Array, "b e"]:
        c = self.config
        if c.end_id is None:
            vector = pool(hidden, mask, c.pooling, c.ahead).astype(self.compute)
        else:
            marks = inputs if c.end_id == -1 else (inputs == c.end_id).astype(jnp.int32)
            found = jnp.argmax(marks, axis=1)[:, None, None]
            vector = jnp.take_along_axis(hidden, found, axis=1)[:, 0]
        vector = vector if self.norm is None else self.norm(vector)
        vector = vector if self.dense is None else self.dense(vector)
        return vector if c.activation is None else ACTIVATIONS[c.activation](vector)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionPoolerConfig:
    """Config of an :class:`AttentionPooler`."""

    heads: int
    norm: NormConfig
    mlp: MlpConfig

    def outputs(self, width: int) -> int:
        return width

    def build(
        self, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "AttentionPooler":
        return AttentionPooler(self, width, std, precision, rngs)


class AttentionPooler(nnx.Module):
    r"""Vector :math:`a + F(N(a))`, where ``a`` is what one learned query attends to in a row.

    Paper: Zhai et al. 2023 (SigLIP), https://arxiv.org/abs/2303.15343; the head is that of Zhai et
    al. 2022, https://arxiv.org/abs/2106.04560.
    """

    def __init__(
        self, c: AttentionPoolerConfig, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        if width % c.heads:
            raise ShapeError("attention pooler", found=width, expected=f"a multiple of {c.heads}")

        def linear(axes: tuple[str, str]) -> Linear:
            return Linear(width, width, axes, bias=True, std=std, precision=precision, rngs=rngs)

        self.probe = parameter(rngs, (1, width), (None, "embed"), std, precision)
        self.query, self.key, self.value = (linear(("embed", "heads")) for _ in range(3))
        self.out = linear(("heads", "embed"))
        self.norm = c.norm.build(width, precision)
        self.mlp = c.mlp.build(width, std, precision, rngs)
        self.heads = c.heads

    def __call__(
        self,
        hidden: Float[Array, "b t d"],
        mask: Int[Array, "b t"] | None,
        inputs: Array,
    ) -> Float[Array, "b d"]:
        b, t, d = hidden.shape
        probe = jnp.broadcast_to(self.probe[...].astype(hidden.dtype)[None], (b, 1, d))
        query, key, value = (
            layer(x).reshape(b, -1, self.heads, d // self.heads)
            for layer, x in ((self.query, probe), (self.key, hidden), (self.value, hidden))
        )
        zero, places = jnp.zeros((b, 1), jnp.int32), jnp.broadcast_to(jnp.arange(t)[None], (b, t))
        segments = () if mask is None else (jnp.ones_like(zero), mask)
        seen = AttentionMask(zero, places, *segments, causal=False)
        scale = (d // self.heads) ** -0.5
        mixed = attention(query, key, value, seen, scale=scale, implementation="grouped")
        x = self.out(mixed.reshape(b, 1, d))
        return add(x, self.mlp(self.norm(x))[0])[:, 0]
