"""Inputs of a decoder beside token ids: embeddings from other towers, at its input and behind its
first layers, and positions of several axes."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MultimodalInputs:
    """Embeddings that stand at some places in the rows instead of their tokens', and the places'
    positions where these have several axes.

    The tokens at those places are looked up and dropped, so any id will do there.
    """

    embeddings: Float[Array, "b n d"] | None = None
    """Embeddings of images, audio or other input, at the model's width."""
    places: Int[Array, "b n"] | None = None
    """Index in the row where each embedding stands; the row's length or more: nowhere, which pads
    rows with fewer embeddings than others."""
    rotary_positions: Int[Array, "b t a"] | None = None
    """Positions of all tokens by axis (time, height, width), for the rotary embedding; default: the
    tokens' own positions on every axis. Masks go by the tokens' own positions."""
    by_layer: Float[Array, "k b n d"] | None = None
    """Embeddings that are added at the places behind each of the first ``k`` layers (DeepStack,
    Meng et al. 2024, https://arxiv.org/abs/2406.04334; Qwen3-VL)."""

    @property
    def layers(self) -> int:
        """Layers of the decoder behind which embeddings are added, the first ones."""
        return 0 if self.by_layer is None else self.by_layer.shape[0]

    def place(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Token embeddings with these in their places.

        >>> x = jnp.zeros((1, 3, 1))
        >>> inputs = MultimodalInputs(jnp.array([[[5.0], [7.0]]]), jnp.array([[1, 3]]))
        >>> inputs.place(x).ravel().tolist()
        [0.0, 5.0, 0.0]
        """
        if self.embeddings is None or self.places is None:
            return x
        rows = jnp.arange(x.shape[0])[:, None]
        return x.at[rows, self.places].set(self.embeddings.astype(x.dtype), mode="drop")

    def hidden_from(self, tokens: Int[Array, "b t"], padding: int) -> Int[Array, "b t"]:
        """Token ids with that of padding at the places.

        >>> inputs = MultimodalInputs(jnp.zeros((1, 2, 4)), jnp.array([[1, 3]]))
        >>> inputs.hidden_from(jnp.array([[7, 8, 9]]), 0).tolist()
        [[7, 0, 9]]
        """
        if self.embeddings is None or self.places is None:
            return tokens
        rows = jnp.arange(tokens.shape[0])[:, None]
        return tokens.at[rows, self.places].set(padding, mode="drop")

    def add(self, x: Float[Array, "b t d"], layer: Float[Array, "b n d"]) -> Float[Array, "b t d"]:
        """A layer's output with what is added behind it.

        >>> inputs = MultimodalInputs(places=jnp.array([[1, 3]]))
        >>> inputs.add(jnp.ones((1, 3, 1)), jnp.array([[[5.0], [7.0]]])).ravel().tolist()
        [1.0, 6.0, 1.0]
        """
        assert self.places is not None
        rows = jnp.arange(x.shape[0])[:, None]
        return x.at[rows, self.places].add(layer.astype(x.dtype), mode="drop")
