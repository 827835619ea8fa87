"""Short causal convolution along the tokens, each channel by itself."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ziggurat.nn.linear import constant, parameter
from ziggurat.nn.precision import Precision


class CausalConvolution(nnx.Module):
    r"""Depthwise convolution :math:`y_t = \sum_{j=0}^{m-1} w_j x_{t-m+1+j} + b` over ``m`` taps.

    Inputs before a document's first token count as zero.

    Args:
        channels: width.
        taps: how many inputs each output sees, its own included.
        axis: logical name of the channels; ``None``: the same on all devices.
        std: standard deviation of the initial weights.
        bias: whether ``b`` exists.
    """

    def __init__(
        self,
        channels: int,
        taps: int,
        axis: str | None,
        *,
        std: float,
        bias: bool = False,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.taps = taps
        self.weight = parameter(rngs, (taps, channels), (None, axis), std, precision)
        self.bias = constant(0.0, (channels,), (axis,), precision) if bias else None

    def __call__(
        self,
        x: Float[Array, "b t f"],
        before: Float[Array, "b m f"] | None,
        starts: Bool[Array, "b t"] | None,
    ) -> tuple[Float[Array, "b t f"], Float[Array, "b n f"]]:
        """The outputs, and the inputs before and among these, from which :func:`newest` takes what
        the next call wants as ``before``.

        Args:
            x: the inputs.
            before: the ``taps - 1`` inputs before them; ``None``: none, which count as zero.
            starts: tokens with which a document begins.
        """
        b, t, _ = x.shape
        history = self.taps - 1
        if before is None:
            before = jnp.zeros((b, history, x.shape[2]), x.dtype)
        inputs = jnp.concatenate([before.astype(x.dtype), x], axis=1)
        weight = self.weight[...].astype(jnp.float32)
        document = None if starts is None else jnp.cumsum(starts, axis=1)
        known = None if document is None else jnp.pad(document, ((0, 0), (history, 0)))
        out = jnp.zeros(x.shape, jnp.float32)
        for tap in range(self.taps):
            part = inputs[:, tap : tap + t].astype(jnp.float32)
            if document is not None and known is not None:
                part = jnp.where((known[:, tap : tap + t] == document)[..., None], part, 0)
            out += part * weight[tap][None, None]
        if self.bias is not None:
            out += self.bias[...].astype(jnp.float32)[None, None]
        return out.astype(x.dtype), inputs


def newest(
    inputs: Float[Array, "b n f"], taps: int, counts: Int[Array, "b"] | None
) -> Float[Array, "b m f"]:
    """The last ``taps - 1`` inputs of each row.

    Args:
        inputs: from :class:`CausalConvolution`.
        taps: its taps.
        counts: tokens of each row that are not padding; ``None``: all.
    """
    history = taps - 1
    if counts is None:
        return inputs[:, inputs.shape[1] - history :]
    at = counts[:, None] + jnp.arange(history)[None]
    return jnp.take_along_axis(inputs, at[..., None], axis=1)
