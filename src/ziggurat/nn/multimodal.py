"""Inputs of a decoder beside token ids: embeddings from other towers, and positions of several
axes."""

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
