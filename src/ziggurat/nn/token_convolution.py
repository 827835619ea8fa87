"""A convolution over neighbouring tokens of an encoder's input, beside its first layer."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.nn.linear import add, constant, parameter
from ziggurat.nn.mlp import ACTIVATIONS, Activation
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenConvolutionConfig:
    """Config of a :class:`TokenConvolution`."""

    size: int
    """Tokens under a kernel, an odd number."""
    activation: Activation
    """Function behind it."""
    norm: NormConfig
    """Norm of the sum."""
    groups: int = 1
    """Groups of channels that do not mix."""

    def build(
        self, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "TokenConvolution":
        return TokenConvolution(self, width, std, precision, rngs)


class TokenConvolution(nnx.Module):
    r"""States :math:`N(y + \sigma(C(x)))` of the encoder's input ``x`` and its first layer's output
    ``y``; the convolution ``C`` sees as many tokens to each side, and zeros in place of padding.

    Paper: He et al. 2020 (DeBERTa-v2's code), https://arxiv.org/abs/2006.03654.
    """

    def __init__(
        self,
        c: TokenConvolutionConfig,
        width: int,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.config = c
        shape, axes = (width, width // c.groups, c.size), ("embed", None, None)
        self.kernel = parameter(rngs, shape, axes, std, precision)
        self.bias = constant(0.0, (width,), ("embed",), precision)
        self.norm = c.norm.build(width, precision)

    def convolved(
        self, x: Float[Array, "b t d"], mask: Int[Array, "b t"] | None
    ) -> Float[Array, "b t d"]:
        r""":math:`\sigma(C(x))`, the second term of the sum."""
        c = self.config
        x = x if mask is None else jnp.where(mask[..., None] > 0, x, 0)
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            window_strides=(1,),
            padding=((c.size // 2, c.size // 2),),
            dimension_numbers=("NWC", "OIW", "NWC"),
            feature_group_count=c.groups,
        )
        return ACTIVATIONS[c.activation](add(y, self.bias[...][None, None]))

    def joined(
        self, y: Float[Array, "b t d"], convolved: Float[Array, "b t d"]
    ) -> Float[Array, "b t d"]:
        """The first layer's output with what :meth:`convolved` gave, normalised."""
        return self.norm(y + convolved)
