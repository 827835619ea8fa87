"""Inputs of single layers: embeddings of the tokens that each layer reads for itself.

Beside the table of the stream there is one with a narrow vector for every token and layer. It costs
memory and hardly any computation, so it may lie in slower memory (Gemma 3n, Gemma 4 E2B and E4B).
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.nn.linear import Embedding, Linear
from ziggurat.nn.mlp import ACTIVATIONS, Activation
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerInputsConfig:
    """Config of :class:`LayerInputs`."""

    vocab_size: int
    """Rows of the table; larger token ids read the row of ``padding``."""
    width: int
    """Channels of a token's vector for one layer."""
    norm: NormConfig
    """Norm over what is projected from the stream."""
    padding: int = 0
    """Token id that is looked up where embeddings of images stand."""


class LayerInputs(nnx.Module):
    r"""Inputs of all layers :math:`e = (N(xW / \sqrt{d}) + \sqrt{p}\,E_t) / \sqrt{2}`, for token
    ``t`` and its embedding ``x`` in the stream.

    Args:
        c: the config.
        layers: number of layers.
        width: ``d``, width of the stream.
        std: standard deviation of the initial weights.
    """

    def __init__(
        self,
        c: LayerInputsConfig,
        layers: int,
        width: int,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        made = {"std": std, "precision": precision, "rngs": rngs}
        self.table = Embedding(c.vocab_size, layers * c.width, **made)
        self.table.table.set_metadata(axes=("vocab", None))
        self.project = Linear(width, layers * c.width, ("embed", None), bias=False, **made)
        self.norm = c.norm.build(c.width, precision, "head_dim")
        self.config, self.layers = c, layers

    def __call__(
        self, tokens: Int[Array, "b t"], x: Float[Array, "b t d"]
    ) -> Float[Array, "l b t p"]:
        """Inputs of each layer.

        Args:
            tokens: ids, those of ``padding`` where the stream holds no token's embedding.
            x: the stream before the first layer.
        """
        c = self.config
        known = (tokens >= 0) & (tokens < c.vocab_size)
        looked_up = self.table(jnp.where(known, tokens, c.padding)) * math.sqrt(c.width)
        shape = (*tokens.shape, self.layers, c.width)
        projected = (self.project(x) * x.shape[-1] ** -0.5).reshape(shape)
        both = (self.norm(projected) + looked_up.reshape(shape)) * 2**-0.5
        return jnp.moveaxis(both, 2, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerInputGateConfig:
    """Config of a :class:`LayerInputGate`."""

    width: int
    """Channels of a layer's own input."""
    activation: Activation
    """Gate function."""


class LayerInputGate(nnx.Module):
    r"""Third branch of a block: :math:`y = x + N((\sigma(xW_g) \odot e) W_o)` for the layer's own
    input ``e``."""

    def __init__(
        self,
        c: LayerInputGateConfig,
        width: int,
        norm: NormConfig,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        made = {"bias": False, "std": std, "precision": precision, "rngs": rngs}
        self.gate = Linear(width, c.width, ("embed", "mlp"), **made)
        self.out = Linear(c.width, width, ("mlp", "embed"), **made)
        self.norm = norm.build(width, precision)
        self.activation = c.activation

    def __call__(
        self, x: Float[Array, "b t d"], own: Float[Array, "b t p"]
    ) -> Float[Array, "b t d"]:
        """The stream with this branch's result."""
        gated = ACTIVATIONS[self.activation](self.gate(x)) * own
        return x + self.norm(self.out(gated))
