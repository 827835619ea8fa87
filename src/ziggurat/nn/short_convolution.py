"""Gated short convolution: a mixer that sees a few tokens back (LFM2)."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.nn.attention_context import AttentionContext, AttentionRule
from ziggurat.nn.causal_convolution import CausalConvolution, newest
from ziggurat.nn.layer_state import ArraySpec, MixerCost, RecurrentSpec
from ziggurat.nn.linear import Linear, apply_each
from ziggurat.nn.precision import Precision
from ziggurat.nn.rope import Rotation


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortConvolutionConfig:
    """Gated short convolution (Liquid AI 2025, https://arxiv.org/abs/2511.23404)."""

    channels: int
    """Channels that are convolved, each by itself."""
    taps: int
    """Tokens that the convolution sees."""
    bias: bool = False
    """Biases on the projections and the convolution."""

    name = "convolution"

    @property
    def state(self) -> RecurrentSpec:
        return RecurrentSpec((ArraySpec((self.taps - 1, self.channels), (None, "mlp")),))

    @property
    def cost(self) -> MixerCost:
        return MixerCost(per_token=2 * self.taps * self.channels)

    @property
    def rope_dim(self) -> int:
        return 0

    @property
    def divided(self) -> dict[str, int]:
        return {}

    def build(
        self, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "ShortConvolution":
        return ShortConvolution(self, width, std=std, precision=precision, rngs=rngs)


class ShortConvolution(nnx.Module):
    r"""Short convolution between gates, :math:`y = W^O (c \odot \mathrm{conv}(b \odot x))`, with
    projections :math:`b, c, x` of the input."""

    def __init__(
        self,
        c: ShortConvolutionConfig,
        width: int,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(d_in: int, d_out: int, axes: tuple[str, str]) -> Linear:
            return Linear(d_in, d_out, axes, bias=c.bias, std=std, precision=precision, rngs=rngs)

        self.gate_in = linear(width, c.channels, ("embed", "mlp"))
        self.gate_out = linear(width, c.channels, ("embed", "mlp"))
        self.value = linear(width, c.channels, ("embed", "mlp"))
        self.out = linear(c.channels, width, ("mlp", "embed"))
        self.taps = CausalConvolution(
            c.channels,
            c.taps,
            "mlp",
            std=c.taps**-0.5,
            bias=c.bias,
            precision=precision,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "b t"],
        rotation: Rotation | None,
        rule: AttentionRule,
        context: AttentionContext,
        state: Any,
    ) -> tuple[Float[Array, "b t d"], Any]:
        recurrence = context.recurrence(state, x.shape[1])
        before = None if recurrence.before is None else recurrence.before[0]
        gate_in, gate_out, value = apply_each((self.gate_in, self.gate_out, self.value), x)
        y, inputs = self.taps(gate_in * value, before, recurrence.starts)
        after = recurrence.store((newest(inputs, self.taps.taps, recurrence.counts),))
        return self.out(gate_out * y), after
