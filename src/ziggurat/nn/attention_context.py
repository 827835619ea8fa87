"""The attention context: the one argument by which training, prefill and decoding differ.

Every attention layer hands its queries, keys and values to the context and gets the result back.
What a context keeps per layer (a cache) is stacked on a leading layers axis, so that the scanned
decoder gives each layer its own part.

=============  =====================================================  ========================
context        who is seen                                            per-layer state
=============  =====================================================  ========================
``Causal``     the row's earlier tokens                               none
``Packed``     earlier tokens of the same document in the row         none
``Cached``     all tokens so far, through a static key/value cache    keys and values
``Bidirectional`` the row's tokens before and after, but for padding     none
=============  =====================================================  ========================
"""

import dataclasses
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ziggurat.kernels.attention import AttentionMask, attention

State = Any
C = TypeVar("C", bound="AttentionContext")


@dataclasses.dataclass(frozen=True)
class AttentionRule:
    """Attention settings of a layer, independent of the context."""

    scale: float
    """Multiplies the scores."""
    window: int | None = None
    """Number of newest tokens seen, in both directions where attention is; ``None``: all."""
    softcap: float | None = None
    """Bound on the scores, if any."""
    implementation: str = "auto"
    """Kernel, see ``ziggurat.kernels.attention``."""


@runtime_checkable
class AttentionContext(Protocol):
    """Interface of an attention context: state, attention and advance."""

    @property
    def state(self) -> State:
        """Per-layer state, leaves ``[l, ...]``; an empty tuple where there is none."""
        ...

    def attend(
        self,
        query: Float[Array, "b t h c"],
        key: Float[Array, "b t k c"],
        value: Float[Array, "b t k z"],
        positions: Int[Array, "b t"],
        rule: AttentionRule,
        state: State,
        sinks: Float[Array, "h"] | None = None,
    ) -> tuple[Float[Array, "b t h z"], State]:
        """Attention output of one layer and the layer's new state."""
        ...

    def advance(self: C, state: State, tokens: int) -> C:
        """The context after a forward pass over ``tokens`` positions."""
        ...


def attend_by_rule(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    mask: AttentionMask,
    rule: AttentionRule,
    sinks: Float[Array, "h"] | None,
) -> Float[Array, "b t h z"]:
    """``ziggurat.kernels.attention`` with what the layer's rule says."""
    return attention(
        query,
        key,
        value,
        mask,
        scale=rule.scale,
        softcap=rule.softcap,
        sinks=sinks,
        implementation=rule.implementation,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Causal:
    """Whole rows, one document each."""

    @property
    def state(self) -> State:
        return ()

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        mask = AttentionMask(positions, positions, aligned=True, window=rule.window)
        return attend_by_rule(query, key, value, mask, rule, sinks), state

    def advance(self, state: State, tokens: int) -> "Causal":
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows that hold several documents, told apart by segment numbers."""

    segment_ids: Int[Array, "b t"]
    """Document number within the row, from 1; 0 is padding."""

    @property
    def state(self) -> State:
        return ()

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        segments = self.segment_ids
        mask = AttentionMask(
            positions, positions, segments, segments, aligned=True, window=rule.window
        )
        return attend_by_rule(query, key, value, mask, rule, sinks), state

    def advance(self, state: State, tokens: int) -> "Packed":
        return self


def counted_tokens(context: AttentionContext) -> Bool[Array, "b t"] | None:
    """Which positions are tokens rather than padding; ``None`` where all are, or nobody knows."""
    return context.segment_ids > 0 if isinstance(context, Packed) else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """Attention in both directions (encoders, diffusion), over rows padded to one length or not."""

    mask: Int[Array, "b t"] | None = None
    """1 for a token, 0 for padding, which no token sees; ``None``: no padding."""

    @property
    def state(self) -> State:
        return ()

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        segments = () if self.mask is None else (jnp.ones_like(self.mask), self.mask)
        mask = AttentionMask(positions, positions, *segments, causal=False, window=rule.window)
        return attend_by_rule(query, key, value, mask, rule, sinks), state

    def advance(self, state: State, tokens: int) -> "Bidirectional":
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cached:
    """A static cache of ``s`` slots; the token at position ``p`` lives in slot ``p``.

    Rows may be of different length: a row's new tokens are written from slot ``lengths[row]`` on.
    Right padding of a prompt is harmless when ``lengths`` is set back to the true lengths
    afterwards: slots beyond a row's length are hidden by causality until they are overwritten, and
    padding beyond the last slot is dropped. Whoever feeds tokens sees to it that they fit.
    """

    keys: Float[Array, "l b s k c"]
    values: Float[Array, "l b s k z"]
    lengths: Int[Array, "b"]
    """Tokens in the cache, per row."""

    @classmethod
    def empty(
        cls,
        layers: int,
        batch: int,
        slots: int,
        kv_heads: int,
        head_dim: int,
        dtype: Any,
        value_dim: int | None = None,
    ) -> "Cached":
        """A cache with nothing in it; ``value_dim`` is ``head_dim`` by default."""
        keys = jnp.zeros((layers, batch, slots, kv_heads, head_dim), dtype)
        values = jnp.zeros((layers, batch, slots, kv_heads, value_dim or head_dim), dtype)
        return cls(keys, values, jnp.zeros(batch, jnp.int32))

    @property
    def state(self) -> State:
        return self.keys, self.values

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        rows = jnp.arange(key.shape[0])[:, None]
        at = self.lengths[:, None] + jnp.arange(key.shape[1])
        keys, values = (
            old.at[rows, at].set(new.astype(old.dtype), mode="drop")
            for old, new in zip(state, (key, value))
        )
        slots = jnp.broadcast_to(jnp.arange(keys.shape[1])[None], (keys.shape[0], keys.shape[1]))
        mask = AttentionMask(positions, slots, window=rule.window)
        seen = keys.astype(query.dtype), values.astype(query.dtype)
        return attend_by_rule(query, *seen, mask, rule, sinks), (keys, values)

    def advance(self, state: State, tokens: int) -> "Cached":
        keys, values = state
        return Cached(keys, values, self.lengths + tokens)
