"""Attention of patches of several images in one row: within an image, or within windows of it.

The row holds images one after another. Nothing of one image reaches another, so the states of an
image do not depend on what it is packed with.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ziggurat.kernels.attention import AttentionMask
from ziggurat.nn.attention_context import Bidirectional, attend_by_rule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class WithinImages(Bidirectional):
    """Attention context in which a patch sees its whole image."""

    images: Int[Array, "b n"]
    """Number of each patch's image in the row, from 1; 0: padding."""

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        mask = AttentionMask(positions, positions, self.images, self.images, causal=False)
        return attend_by_rule(query, key, value, mask, rule, sinks), state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class WithinWindows(Bidirectional):
    """Attention context in which a patch sees the patches of its window.

    Windows become rows of their own, so that the scores are ``w s^2`` numbers, not ``n^2``.
    """

    windows: Int[Array, "b w s"]
    """Indices of the patches of each window; the row's length or more: nothing, which pads."""

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        batch, patches = query.shape[:2]
        count, size = self.windows.shape[1:]
        members = self.windows.reshape(batch, count * size)
        rows = jnp.arange(batch)[:, None]

        def gathered(x: Shaped[Array, "b n ..."]) -> Shaped[Array, "v s ..."]:
            found = x[rows, jnp.minimum(members, patches - 1)]
            return found.reshape(batch * count, size, *x.shape[2:])

        inside = (self.windows < patches).astype(jnp.int32).reshape(batch * count, size)
        steps = jnp.broadcast_to(jnp.arange(size)[None], inside.shape)
        mask = AttentionMask(steps, steps, inside, inside, causal=False)
        query, key, value = gathered(query), gathered(key), gathered(value)
        mixed = attend_by_rule(query, key, value, mask, rule, sinks)
        mixed = mixed.reshape(batch, count * size, *mixed.shape[2:])
        back: Float[Array, "b n h z"] = jnp.zeros((batch, patches, *mixed.shape[2:]), mixed.dtype)
        return back.at[rows, members].set(mixed, mode="drop"), state
