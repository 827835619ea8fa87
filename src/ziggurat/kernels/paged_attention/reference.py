"""Paged attention in plain jax.numpy: a scatter of the new tokens, a gather of all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.kernels.key_values import KeyValues

SINK = 0
"""The block that padding is written to; nobody's tokens are in it."""
SPAN = 256
"""Slots read at once; longer tables are read in a loop up to the longest in use."""
HIDDEN = -1e30
"""Score of a token that a query does not see."""


class Rows(NamedTuple):
    """New tokens of several sequences, each with a table of the blocks that hold its tokens."""

    tables: Int[Array, "b pages"]
    """Position ``p`` of a row lives in slot ``p % slots`` of block ``tables[row, p // slots]``."""
    positions: Int[Array, "b t"]
    """Positions of the new tokens; padding repeats the last."""
    counts: Int[Array, "b"]
    """New tokens of each row; what is behind them is padding."""
    last: Int[Array, "b t"] | None = None
    """Last position that each new token sees, among those of this pass; ``None``: its own."""


def written(
    cache: KeyValues, key: Float[Array, "b t k c"], value: Float[Array, "b t k z"], rows: Rows
) -> KeyValues:
    """The cache with the new tokens; padding goes to the sink."""
    slots, width = cache.keys.shape[2], key.shape[1]
    slot = rows.positions % slots
    block = jnp.take_along_axis(rows.tables, rows.positions // slots, axis=1)
    block = jnp.where(jnp.arange(width)[None] < rows.counts[:, None], block, SINK)

    def place(old: Array, new: Array) -> Array:
        return old.at[:, block, slot].set(jnp.moveaxis(new, 2, 0).astype(old.dtype))

    return cache.put(key, value, place)


def reference_paged_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b t k c"] | None,
    value: Float[Array, "b t k z"] | None,
    cache: KeyValues,
    rows: Rows,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    sinks: Float[Array, "h"] | None = None,
    span: int = SPAN,
) -> tuple[Float[Array, "b t h z"], KeyValues]:
    """The definition: a running softmax over spans of the tables, from the first that a window
    leaves visible to the last that any row uses (Milakov and Gimelshein 2018,
    https://arxiv.org/abs/1805.02867)."""
    if key is not None and value is not None:
        cache = written(cache, key, value, rows)
    b, t, h, c = query.shape
    k, _, slots, _ = cache.keys.shape
    g = h // k
    q = (query * scale).reshape(b, t, k, g, c).transpose(2, 0, 3, 1, 4).reshape(k, b, g * t, c)
    at_rows = jnp.tile(rows.positions, (1, g))[None, :, :, None]  # [1 b g*t 1]
    last = at_rows if rows.last is None else jnp.tile(rows.last, (1, g))[None, :, :, None]
    tables, taken, spans = _in_spans(rows.tables, slots, span)

    def read(index, carry):
        peak, total, out = carry
        some = jax.lax.dynamic_slice_in_dim(tables, index * taken, taken, axis=1)
        here = cache.read(
            query.dtype, lambda held: held[:, some].reshape(k, b, taken * slots, *held.shape[3:])
        )
        scores = _scores(q, here[0], softcap)
        at = index * taken * slots + jnp.arange(taken * slots)[None, None, None]
        visible = at <= last
        if window is not None:
            visible &= at > at_rows - window
        scores = jnp.where(visible, scores, HIDDEN)
        higher = jnp.maximum(peak, scores.max(-1, keepdims=True))
        weights = jnp.where(visible, jnp.exp(scores - higher), 0.0)
        shrink = jnp.exp(peak - higher)
        part = jnp.einsum("kbns,kbsz->kbnz", weights.astype(query.dtype), here[1])
        total = total * shrink + weights.sum(-1, keepdims=True)
        return higher, total, out * shrink + part.astype(out.dtype)

    one = jnp.zeros((k, b, g * t, 1))
    carry = one + HIDDEN, one, jnp.zeros((k, b, g * t, cache.values.shape[3]))
    if spans == 1:
        peak, total, out = read(0, carry)
    else:
        first, end = _visible(rows, window, taken * slots)
        peak, total, out = jax.lax.fori_loop(first, end, read, carry)
    if sinks is not None:  # exp may overflow only where the sink takes everything
        sink = jnp.repeat(sinks.astype(jnp.float32).reshape(k, g), t, axis=1)
        total += jnp.exp(sink[:, None, :, None] - peak)
    out = (out / jnp.maximum(total, 1e-30)).reshape(k, b, g, t, -1)
    return out.transpose(1, 3, 0, 2, 4).reshape(b, t, h, -1).astype(query.dtype), cache


def _scores(q: Array, keys: Array, softcap: float | None) -> Float[Array, "k b n s"]:
    scores = jnp.einsum("kbnc,kbsc->kbns", q, keys, preferred_element_type=jnp.float32)
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _in_spans(tables: Array, slots: int, span: int) -> tuple[Array, int, int]:
    """Tables padded to whole spans, blocks in a span, and number of spans."""
    pages = tables.shape[1]
    taken = min(max(span // slots, 1), pages)
    spans = -(-pages // taken)
    padding = ((0, 0), (0, spans * taken - pages))
    return jnp.pad(tables, padding, constant_values=SINK), taken, spans


def _visible(rows: Rows, window: int | None, span: int) -> tuple[Array, Array]:
    """The first span that a row sees, and the one after the last."""
    used = rows.counts > 0
    last = -(-jnp.max(jnp.where(used, rows.positions[:, -1] + 1, 0)) // span)
    if window is None:
        return jnp.zeros_like(last), last
    begins = jnp.where(used, rows.positions[:, 0], jnp.iinfo(jnp.int32).max)
    return jnp.maximum(jnp.min(begins) - window + 1, 0) // span, last
