"""Mamba-2: a selective state space with a state of fixed size (Mamba-2, Granite 4, Nemotron-H)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.kernels.state_space import state_space
from ziggurat.mesh import constrain
from ziggurat.nn.attention_context import AttentionContext, AttentionRule
from ziggurat.nn.causal_convolution import CausalConvolution, newest
from ziggurat.nn.layer_state import ArraySpec, MixerCost, RecurrentSpec
from ziggurat.nn.linear import Linear, apply_each, constant
from ziggurat.nn.mlp import ACTIVATIONS, Activation
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import Rotation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """Mamba-2 (Dao and Gu 2024, https://arxiv.org/abs/2405.21060)."""

    heads: int
    """Heads, each with a state and a decay of its own; a multiple of ``groups``."""
    head_dim: int
    """Channels of one head."""
    groups: int
    """Groups of heads that share a key and a query (``B`` and ``C``), and a norm."""
    state_dim: int
    """Channels of a key, the state's size for each channel of a head."""
    taps: int
    """Tokens that the convolution before the recurrence sees."""
    norm_eps: float
    """Epsilon of the norm over the output."""
    norm: bool = True
    """Whether the output is normalised; without, it is only gated."""
    gate_first: bool = True
    """The gate multiplies before the norm; ``False``: after."""
    step_limits: tuple[float, float | None] = (0.0, None)
    """Bounds of the step size of time; ``None``: no upper one."""
    initial_steps: tuple[float, float] = (1e-3, 0.1)
    """Step sizes that a fresh model draws its biases for, log-uniformly."""
    activation: Activation = "silu"
    """After the convolution."""
    bias: bool = False
    """Biases on the input and output projections."""
    convolution_bias: bool = True
    """Biases of the convolution."""

    name = "mamba"

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    @property
    def state(self) -> RecurrentSpec:
        keys = self.groups * self.state_dim
        history = [
            ArraySpec((self.taps - 1, width), (None, axis))
            for width, axis in ((self.width, "heads"), (keys, None), (keys, None))
        ]
        shape = (self.heads, self.state_dim, self.head_dim)
        return RecurrentSpec((*history, ArraySpec(shape, ("heads", None, None), jnp.float32)))

    @property
    def cost(self) -> MixerCost:
        products = 2 * 2 * self.heads * self.state_dim * self.head_dim
        channels = self.width + 2 * self.groups * self.state_dim
        return MixerCost(per_token=products + 2 * self.taps * channels)

    @property
    def rope_dim(self) -> int:
        return 0

    @property
    def divided(self) -> dict[str, int]:
        return {"heads": self.heads}

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "Mamba2":
        return Mamba2(self, width, std=std, precision=precision, rngs=rngs)


class Mamba2(nnx.Module):
    r"""Selective state space, :func:`ziggurat.kernels.state_space.state_space`.

    With projections :math:`z, x, B, C, \delta` of the input, of which :math:`x, B, C` pass a short
    causal convolution and SiLU, the step size is :math:`\Delta = \mathrm{softplus}(\delta + b)`
    within its limits, and for each head

    .. math:: S_t = e^{-\Delta_t e^A} S_{t-1} + B_t (\Delta_t x_t)^T, \quad
        y_t = S_t^T C_t + D x_t.

    The result is :math:`W^O \mathrm{norm}(y \odot \mathrm{SiLU}(z))`. Keys and queries are few and
    serve many heads, so a mesh holds them on every device.
    """

    def __init__(
        self, c: Mamba2Config, width: int, *, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        keys = c.groups * c.state_dim

        def linear(d_in: int, d_out: int, axes: tuple[str | None, str | None]) -> Linear:
            return Linear(d_in, d_out, axes, bias=c.bias, std=std, precision=precision, rngs=rngs)

        def convolution(channels: int, axis: str | None) -> CausalConvolution:
            more = {"std": c.taps**-0.5, "precision": precision, "rngs": rngs}
            return CausalConvolution(channels, c.taps, axis, bias=c.convolution_bias, **more)

        self.gate = linear(width, c.width, ("embed", "heads"))
        self.value = linear(width, c.width, ("embed", "heads"))
        self.key = linear(width, keys, ("embed", None))
        self.query = linear(width, keys, ("embed", None))
        self.step = linear(width, c.heads, ("embed", "heads"))
        self.out = linear(c.width, width, ("heads", "embed"))
        self.value_convolution = convolution(c.width, "heads")
        self.key_convolution = convolution(keys, None)
        self.query_convolution = convolution(keys, None)
        rates = jnp.log(jnp.arange(1, c.heads + 1, dtype=jnp.float32))
        self.log_rate = nnx.Param(rates.astype(precision.param_dtype), axes=("heads",))
        self.step_bias = nnx.Param(
            _step_bias(c, rngs).astype(precision.param_dtype), axes=("heads",)
        )
        self.skip = constant(1.0, (c.heads,), ("heads",), precision)
        self.norm_scale = constant(1.0, (c.width,), ("heads",), precision) if c.norm else None
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
        projections = (self.value, self.key, self.query, self.gate, self.step)
        *mixed, gate, step = apply_each(projections, x)
        convolutions = (self.value_convolution, self.key_convolution, self.query_convolution)
        *before, memory = recurrence.before or (None,) * 4
        outputs, histories = [], []
        for convolution, y, past in zip(convolutions, mixed, before):
            y, inputs = convolution(y, past, recurrence.starts)
            outputs.append(ACTIVATIONS[c.activation](y))
            histories.append(newest(inputs, c.taps, recurrence.counts))
        value = outputs[0].reshape(b, t, c.heads, c.head_dim).astype(jnp.float32)
        value = constrain(value, ("batch", "sequence", "heads", None))
        key, query = (y.reshape(b, t, c.groups, c.state_dim) for y in outputs[1:])
        size, log_decay = self._steps(step, recurrence.counts)
        out, memory = state_space(
            query, key, value * size[..., None], log_decay, memory, recurrence.starts
        )
        out = out + value * self.skip[...].astype(jnp.float32)[None, None, :, None]
        after = recurrence.store((*histories, memory))
        return self.out(self._gated(out.reshape(b, t, -1), gate).astype(x.dtype)), after

    def _steps(
        self, step: Float[Array, "b t h"], counts: Int[Array, "b"] | None
    ) -> tuple[Float[Array, "b t h"], Float[Array, "b t h"]]:
        """Step sizes and log decays in float32; padding takes no step, so that it neither decays
        the state nor writes to it."""
        wide = step.astype(jnp.float32) + self.step_bias[...].astype(jnp.float32)[None, None]
        size = jnp.clip(jax.nn.softplus(wide), *self.config.step_limits)
        if counts is not None:
            real = jnp.arange(step.shape[1])[None] < counts[:, None]
            size = jnp.where(real[..., None], size, 0)
        return size, -jnp.exp(self.log_rate[...].astype(jnp.float32))[None, None] * size

    def _gated(self, out: Float[Array, "b t f"], gate: Float[Array, "b t f"]):
        """Output in float32, gated and normalised over the channels of each group."""
        c, open_ = self.config, jax.nn.silu(gate.astype(jnp.float32))
        if self.norm_scale is None or c.gate_first:
            out = out * open_
        if self.norm_scale is None:
            return out
        grouped = out.reshape(*out.shape[:-1], c.groups, -1)
        square = jnp.mean(grouped * grouped, axis=-1, keepdims=True)
        normed = (grouped * jax.lax.rsqrt(square + c.norm_eps)).reshape(out.shape)
        normed = normed * self.norm_scale[...].astype(jnp.float32)[None, None]
        return normed if c.gate_first else normed * open_


def _step_bias(c: Mamba2Config, rngs: nnx.Rngs) -> Float[Array, "h"]:
    """Biases for which an input of zero takes the initial steps: softplus reversed."""
    low, high = (math.log(size) for size in c.initial_steps)
    size = jnp.exp(jax.random.uniform(rngs.params(), (c.heads,), minval=low, maxval=high))
    return size + jnp.log(-jnp.expm1(-size))
