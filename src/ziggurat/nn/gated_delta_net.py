"""Gated delta net: linear attention with a state of fixed size (Qwen3-Next, Qwen3.5)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.kernels.delta_rule import delta_rule
from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, AttentionRule
from ziggurat.nn.causal_convolution import CausalConvolution, newest
from ziggurat.nn.layer_state import ArraySpec, MixerCost, RecurrentSpec
from ziggurat.nn.linear import Linear, apply_each, constant
from ziggurat.nn.mlp import ACTIVATIONS, Activation
from ziggurat.nn.norm import RMSNorm
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import Rotation


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig:
    """Gated delta net (Yang et al. 2024, https://arxiv.org/abs/2412.06464)."""

    key_heads: int
    """Heads of queries and keys; each serves ``value_heads / key_heads`` value heads."""
    value_heads: int
    """Heads of values, each with a state of its own."""
    key_dim: int
    """Channels of one key."""
    value_dim: int
    """Channels of one value."""
    taps: int
    """Tokens that the convolutions before queries, keys and values see."""
    norm_eps: float
    """Epsilon of the norm over each head's output."""
    activation: Activation = "silu"
    """Function behind the convolutions."""

    name = "delta_net"

    @property
    def state(self) -> RecurrentSpec:
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        history = [
            ArraySpec((self.taps - 1, width), (None, axis))
            for width, axis in ((keys, "kv_heads"), (keys, "kv_heads"), (values, "heads"))
        ]
        shape = (self.value_heads, self.key_dim, self.value_dim)
        return RecurrentSpec((*history, ArraySpec(shape, ("heads", None, None), jnp.float32)))

    @property
    def cost(self) -> MixerCost:
        products = 3 * 2 * self.value_heads * self.key_dim * self.value_dim
        channels = 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
        return MixerCost(per_token=products + 2 * self.taps * channels)

    @property
    def rope_dim(self) -> int:
        return 0

    @property
    def divided(self) -> dict[str, int]:
        return {"heads": self.value_heads, "kv_heads": self.key_heads}

    def with_kv_heads(self, count: int) -> "GatedDeltaNetConfig":
        """The config with so many key heads."""
        return dataclasses.replace(self, key_heads=count)

    def build(
        self, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "GatedDeltaNet":
        return GatedDeltaNet(self, width, std=std, precision=precision, rngs=rngs)


class GatedDeltaNet(nnx.Module):
    r"""Linear attention by the gated delta rule, :func:`ziggurat.kernels.delta_rule.delta_rule`.

    Queries, keys and values pass a short causal convolution and SiLU; queries and keys are scaled
    to length one. With projections :math:`a, b, z` of the input, the decay is :math:`g = -e^{A}
    \mathrm{softplus}(a + \delta)`, the rate :math:`\beta = \sigma(b)`, and the result
    :math:`W^O (\mathrm{norm}(o) \odot \mathrm{SiLU}(z))`.
    """

    def __init__(
        self,
        c: GatedDeltaNetConfig,
        width: int,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        keys, values = c.key_heads * c.key_dim, c.value_heads * c.value_dim

        def linear(d_in: int, d_out: int, axes: tuple[str, str]) -> Linear:
            return Linear(d_in, d_out, axes, bias=False, std=std, precision=precision, rngs=rngs)

        def convolution(channels: int, axis: str) -> CausalConvolution:
            more = {"std": c.taps**-0.5, "precision": precision, "rngs": rngs}
            return CausalConvolution(channels, c.taps, axis, **more)

        self.query = linear(width, keys, ("embed", "kv_heads"))
        self.key = linear(width, keys, ("embed", "kv_heads"))
        self.value = linear(width, values, ("embed", "heads"))
        self.gate = linear(width, values, ("embed", "heads"))
        self.decay = linear(width, c.value_heads, ("embed", "heads"))
        self.rate = linear(width, c.value_heads, ("embed", "heads"))
        self.out = linear(values, width, ("heads", "embed"))
        self.query_convolution = convolution(keys, "kv_heads")
        self.key_convolution = convolution(keys, "kv_heads")
        self.value_convolution = convolution(values, "heads")
        self.log_decay = constant(0.0, (c.value_heads,), ("heads",), precision)
        self.decay_bias = constant(1.0, (c.value_heads,), ("heads",), precision)
        self.out_norm = RMSNorm(c.value_dim, eps=c.norm_eps, precision=precision, axis="head_dim")
        self.config = c

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rotation: Rotation | None,
        rule: AttentionRule,
        context: AttentionContext,
        state: Any,
    ) -> tuple[Float[Array, "b t d"], Any]:
        c, (b, t, _) = self.config, x.shape
        recurrence = context.recurrence(state, t)
        projections = (self.query, self.key, self.value, self.gate, self.decay, self.rate)
        *mixed, gate, decay, rate = apply_each(projections, x)
        convolutions = (self.query_convolution, self.key_convolution, self.value_convolution)
        *before, memory = recurrence.before or (None,) * 4
        outputs, histories = [], []
        for convolution, y, past in zip(convolutions, mixed, before):
            y, inputs = convolution(y, past, recurrence.starts)
            outputs.append(ACTIVATIONS[c.activation](y))
            histories.append(newest(inputs, c.taps, recurrence.counts))
        query, key = (_unit(y.reshape(b, t, c.key_heads, c.key_dim)) for y in outputs[:2])
        value = outputs[2].reshape(b, t, c.value_heads, c.value_dim)
        query = constrain(query * c.key_dim**-0.5, ("batch", "sequence", "kv_heads", None))
        key = constrain(key, ("batch", "sequence", "kv_heads", None))
        value = constrain(value, ("batch", "sequence", "heads", None))
        log_decay, rate = self._gates(decay, rate, recurrence.counts)
        out, memory = delta_rule(query, key, value, log_decay, rate, memory, recurrence.starts)
        out = self.out_norm(out).astype(jnp.float32) * jax.nn.silu(
            gate.reshape(out.shape).astype(jnp.float32)
        )
        after = recurrence.store((*histories, memory))
        return self.out(out.astype(x.dtype).reshape(b, t, -1)), after

    def _gates(
        self,
        decay: Float[Array, "b t h"],
        rate: Float[Array, "b t h"],
        counts: Int[Array, "b"] | None,
    ) -> tuple[Float[Array, "b t h"], Float[Array, "b t h"]]:
        """Log decay and rate in float32; padding neither decays the state nor writes to it."""
        wide = decay.astype(jnp.float32) + self.decay_bias[...].astype(jnp.float32)[None, None]
        speed = jnp.exp(self.log_decay[...].astype(jnp.float32))[None, None]
        log_decay = -speed * jax.nn.softplus(wide)
        beta = jax.nn.sigmoid(rate.astype(jnp.float32))
        if counts is not None:
            real = (jnp.arange(decay.shape[1])[None] < counts[:, None])[..., None]
            log_decay, beta = jnp.where(real, log_decay, 0), jnp.where(real, beta, 0)
        return log_decay, beta


def _unit(x: Float[Array, "b t k c"]) -> Float[Array, "b t k c"]:
    """Vectors of length one, in float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + 1e-6)
