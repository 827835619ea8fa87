"""The attention context: the one argument by which training, prefill and decoding differ.

An attention layer hands its queries, keys and values to :meth:`AttentionContext.attend` and gets
the result back. A recurrent layer asks :meth:`AttentionContext.recurrence` for the state before its
tokens and where documents begin, and gives back the state after them. What a context keeps is laid
out by the layers' :mod:`~ziggurat.nn.layer_state` specs: by stack of parameters, each with a
leading layers axis, so that the scanned decoder gives each layer its own part.

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
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.kernels.attention import AttentionMask, attention
from ziggurat.kernels.key_values import KeyValues
from ziggurat.nn.layer_state import KeyValueSpec, StateSpec
from ziggurat.nn.relative_positions import Distances

State = Any
C = TypeVar("C", bound="AttentionContext")


@dataclasses.dataclass(frozen=True)
class QueryScaling:
    r"""Queries multiplied by :math:`1 + \beta \ln(1 + \lfloor p / L \rfloor)` at position ``p``, so
    that attention stays sharp over long contexts (Llama 4, Ministral 3).

    Paper: Nakanishi 2025, https://arxiv.org/abs/2501.19399.
    """

    beta: float
    original_length: int
    """``L``: context length in tokens up to which nothing is scaled."""

    def factors(self, positions: Int[Array, "b t"]) -> Float[Array, "b t"]:
        """The factor of each query, float32."""
        turns = jnp.floor(positions.astype(jnp.float32) / self.original_length)
        return 1 + self.beta * jnp.log1p(turns)


@dataclasses.dataclass(frozen=True)
class AttentionRule:
    """Attention settings of a layer, independent of the context."""

    scale: float
    """Multiplies the scores."""
    window: int | None = None
    """Number of newest tokens seen, in both directions where attention is; ``None``: all."""
    softcap: float | None = None
    """Bound on the scores, if any."""
    query_scaling: QueryScaling | None = None
    """Growth of queries with their position, if any."""
    read_later: bool = False
    """Later layers attend to this layer's keys and values (Gemma 4 E2B)."""
    implementation: str = "auto"
    """Kernel, see ``ziggurat.kernels.attention``."""


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """State and rows of a recurrent layer in one forward pass, with the place for its new state."""

    before: tuple[Float[Array, "b ..."], ...] | None
    """Arrays of the layer's :class:`~ziggurat.nn.layer_state.RecurrentSpec` before the first token;
    ``None``: zeros."""
    starts: Bool[Array, "b t"] | None
    """Tokens with which a document begins, so that nothing before them counts; ``None``: none."""
    counts: Int[Array, "b"] | None
    """Tokens of each row; what is behind them is padding and leaves the state alone. ``None``:
    all."""
    store: Callable[[tuple[Array, ...]], State]
    """From the arrays after the last token to the layer's new state."""


@runtime_checkable
class AttentionContext(Protocol):
    """Interface of a context, as the decoder and its layers use it."""

    @property
    def state(self) -> State:
        """States by stack of layers, leaves ``[l, ...]``; an empty tuple where there is none."""
        ...

    def context_length(self, positions: Int[Array, "b t"]) -> Int[Array, "b t"] | int:
        """Length of each token's sequence, for what depends on it: see :mod:`ziggurat.nn.rope`."""
        ...

    def recurrence(self, state: State, tokens: int) -> Recurrence:
        """Inputs of a recurrent layer's call: its state before these ``tokens`` positions, and
        where documents begin and padding lies."""
        ...

    def attend(
        self,
        query: Float[Array, "b t h c"],
        key: Float[Array, "b t k c"] | None,
        value: Float[Array, "b t k z"] | None,
        positions: Int[Array, "b t"],
        rule: AttentionRule,
        state: State,
        sinks: Float[Array, "h"] | None = None,
    ) -> tuple[Float[Array, "b t h z"], State]:
        """Attention output of one layer and the layer's new state.

        Without a key and a value the layer attends to those of an earlier layer, whose rule says
        ``read_later``; ``state`` is then what this method gave that layer, and stays as it is.
        """
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
    bias: Float[Array, "*rows h t s"] | None = None,
) -> Float[Array, "b t h z"]:
    """Call ``ziggurat.kernels.attention`` with a layer's rule."""
    return attention(
        query,
        key,
        value,
        mask,
        scale=rule.scale,
        softcap=rule.softcap,
        sinks=sinks,
        bias=bias,
        implementation=rule.implementation,
    )


def _kept(
    key: Float[Array, "b t k c"] | None,
    value: Float[Array, "b t k z"] | None,
    rule: AttentionRule,
    state: State,
) -> tuple[Array, Array, State]:
    """Keys and values of a context that keeps nothing between forward passes, and the state: keys
    and values for a layer that comes later, or as it was."""
    if key is None or value is None:
        return state.keys, state.values, state
    return key, value, KeyValues(key, value) if rule.read_later else state


def _stateless(starts: Bool[Array, "b t"] | None = None) -> Recurrence:
    """From zeros, and the state afterwards is not kept."""
    return Recurrence(None, starts, None, lambda arrays: ())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Causal:
    """Attention context of whole rows, one document each."""

    last_seen: Int[Array, "b t"] | None = None
    """Position of the last token that each token sees; ``None``: its own. Tokens of an image see
    one another by it (Gemma 3)."""

    @property
    def state(self) -> State:
        return ()

    def context_length(self, positions: Int[Array, "b t"]) -> Int[Array, "b t"]:
        return jnp.broadcast_to(jnp.max(positions, axis=1, keepdims=True) + 1, positions.shape)

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        key, value, state = _kept(key, value, rule, state)
        mask = AttentionMask(
            positions, positions, aligned=True, window=rule.window, query_last=self.last_seen
        )
        return attend_by_rule(query, key, value, mask, rule, sinks), state

    def recurrence(self, state: State, tokens: int) -> Recurrence:
        return _stateless()

    def advance(self, state: State, tokens: int) -> "Causal":
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Attention context of rows that hold several documents, told apart by segment numbers."""

    segment_ids: Int[Array, "b t"]
    """Document number within the row, from 1; 0 is padding."""
    last_seen: Int[Array, "b t"] | None = None
    """Position in its document of the last token that each token sees; ``None``: its own. Tokens of
    an image see one another by it (Gemma 3)."""

    @property
    def state(self) -> State:
        return ()

    def context_length(self, positions: Int[Array, "b t"]) -> Int[Array, "b t"]:
        def of_row(last: Int[Array, "t"], segments: Int[Array, "t"]) -> Int[Array, "t"]:
            longest = jax.ops.segment_max(last, segments, num_segments=len(segments) + 1)
            return longest[segments]

        return jax.vmap(of_row)(positions, self.segment_ids) + 1

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        key, value, state = _kept(key, value, rule, state)
        segments = self.segment_ids
        mask = AttentionMask(
            positions,
            positions,
            segments,
            segments,
            aligned=True,
            window=rule.window,
            query_last=self.last_seen,
        )
        return attend_by_rule(query, key, value, mask, rule, sinks), state

    def recurrence(self, state: State, tokens: int) -> Recurrence:
        before = jnp.pad(self.segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        return _stateless(self.segment_ids != before)

    def advance(self, state: State, tokens: int) -> "Packed":
        return self


def counted_tokens(context: AttentionContext) -> Bool[Array, "b t"] | None:
    """Mask of real tokens, without padding; ``None`` where the context knows of no padding."""
    return context.segment_ids > 0 if isinstance(context, Packed) else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """Attention context in both directions (encoders, diffusion), over rows padded to one length or
    not."""

    mask: Int[Array, "b t"] | None = None
    """1 for a token, 0 for padding, which no token sees; ``None``: no padding."""
    bias: Float[Array, "*rows h t t"] | None = None
    """Added to the scores of every layer: relative positions."""
    distances: Distances | None = None
    """Vectors of distances, from which each layer makes a bias of its own (DeBERTa)."""

    @property
    def state(self) -> State:
        return ()

    def context_length(self, positions: Int[Array, "b t"]) -> Int[Array, "b t"]:
        seen = positions if self.mask is None else positions * self.mask
        return jnp.broadcast_to(jnp.max(seen, axis=1, keepdims=True) + 1, positions.shape)

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        key, value, state = _kept(key, value, rule, state)
        segments = () if self.mask is None else (jnp.ones_like(self.mask), self.mask)
        mask = AttentionMask(positions, positions, *segments, causal=False, window=rule.window)
        return attend_by_rule(query, key, value, mask, rule, sinks, self.bias), state

    def recurrence(self, state: State, tokens: int) -> Recurrence:
        raise ShapeError(
            "recurrent layer", found="attention in both directions", expected="a causal context"
        )

    def advance(self, state: State, tokens: int) -> "Bidirectional":
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cached:
    """Attention context with a static cache of ``s`` slots; the token at position ``p`` lives in
    slot ``p``.

    Rows may be of different length: a row's new tokens are written from slot ``lengths[row]`` on.
    Right padding of a prompt is harmless to attention when ``lengths`` is set back to the true
    lengths afterwards: slots beyond a row's length are hidden by causality until they are
    overwritten, and padding beyond the last slot is dropped. Recurrent layers must be told of it by
    ``counts``. Whoever feeds tokens sees to it that they fit.
    """

    states: tuple[Any, ...]
    """By stack: :class:`~ziggurat.kernels.key_values.KeyValues` ``[l, b, s, k, ...]``, or the
    arrays of recurrent layers ``[l, b, ...]``."""
    lengths: Int[Array, "b"]
    """Tokens in the cache, per row."""
    counts: Int[Array, "b"] | None = None
    """New tokens of each row in the next pass, the rest of the row being padding; ``None``: all."""
    last_seen: Int[Array, "b t"] | None = None
    """Position of the last token that each token of the next pass sees; ``None``: its own."""

    @classmethod
    def empty(
        cls, stacks: Sequence[tuple[StateSpec, int]], batch: int, slots: int, dtype: Any
    ) -> "Cached":
        """Make an empty cache.

        Args:
            stacks: of each stack, its layers' spec and how many they are.
            batch: rows.
            slots: most tokens of a row.
            dtype: of computing.
        """

        def zeros(spec: StateSpec, layers: int) -> Any:
            leading = (layers, batch)
            if isinstance(spec, KeyValueSpec):
                leading += (slots, spec.kv_heads)
            return spec.zeros(leading, dtype)

        states = tuple(zeros(*stack) for stack in stacks)
        return cls(states, jnp.zeros(batch, jnp.int32))

    @property
    def state(self) -> State:
        return self.states

    def context_length(self, positions: Int[Array, "b t"]) -> int:
        slots = [s.keys.shape[2] for s in self.states if isinstance(s, KeyValues)]
        return max(slots, default=0)

    def attend(self, query, key, value, positions, rule, state, sinks=None):
        rows = jnp.arange(query.shape[0])[:, None]
        at = self.lengths[:, None] + jnp.arange(query.shape[1])[None]

        def place(old: Array, new: Array) -> Array:
            return old.at[rows, at].set(new.astype(old.dtype), mode="drop")

        state = state if key is None else state.put(key, value, place)
        keys, values = state.read(query.dtype)
        slots = jnp.broadcast_to(jnp.arange(keys.shape[1])[None], (keys.shape[0], keys.shape[1]))
        mask = AttentionMask(positions, slots, window=rule.window, query_last=self.last_seen)
        return attend_by_rule(query, keys, values, mask, rule, sinks), state

    def recurrence(self, state: State, tokens: int) -> Recurrence:
        def store(arrays: tuple[Array, ...]) -> State:
            return tuple(new.astype(old.dtype) for old, new in zip(state, arrays))

        return Recurrence(state, None, self.counts, store)

    def advance(self, state: State, tokens: int) -> "Cached":
        return Cached(state, self.lengths + (tokens if self.counts is None else self.counts))
