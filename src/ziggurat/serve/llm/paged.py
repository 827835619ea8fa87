"""Attention through the paged key/value cache: an ``AttentionContext`` over tables of blocks.

A layer's keys and values are one array each, ``[k, blocks, slots, c]``, separate from those of
other layers, so that a compiled step that owns them writes new tokens in place. Heads lead: blocks
gathered by a table are then laid out as the products want them, with no transposition.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.nn.attention_context import AttentionRule
from ziggurat.serve.llm.blocks import SINK

SPAN = 256
"""Slots read at once; longer tables are read in a loop up to the longest in use."""
HIDDEN = -1e30

LayerCache = tuple[Float[Array, "k blocks slots c"], Float[Array, "k blocks slots z"]]
"""Keys and values of one layer."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Paged:
    """Rows of different length, each with a table of the blocks that hold its tokens.

    The token at position ``p`` of a row lives in block ``tables[row, p // slots]``, slot
    ``p % slots``. Padding behind a row's new tokens goes to the sink.
    """

    tables: Int[Array, "b pages"]
    start: Int[Array, "b"]
    """Tokens in the cache before these."""
    counts: Int[Array, "b"]
    """New tokens; 0 for a row that is padding as a whole."""
    span: int = dataclasses.field(default=SPAN, metadata={"static": True})
    """See :data:`SPAN`."""

    @property
    def state(self) -> tuple[()]:
        return ()

    def advance(self, state: Any, tokens: int) -> "Paged":
        return dataclasses.replace(self, start=self.start + self.counts)

    def positions(self, width: int) -> Int[Array, "b t"]:
        """Positions of the new tokens; padding repeats the last, so that none is out of range."""
        last = jnp.maximum(self.counts - 1, 0)[:, None]
        return self.start[:, None] + jnp.minimum(jnp.arange(width)[None], last)

    def attend(
        self,
        query: Float[Array, "b t h c"],
        key: Float[Array, "b t k c"],
        value: Float[Array, "b t k z"],
        positions: Int[Array, "b t"],
        rule: AttentionRule,
        state: LayerCache,
        sinks: Float[Array, "h"] | None = None,
    ) -> tuple[Float[Array, "b t h z"], LayerCache]:
        """Attention output of one layer, and its cache with the new tokens."""
        slots, width = state[0].shape[2], key.shape[1]
        block = jnp.take_along_axis(self.tables, positions // slots, axis=1)
        block = jnp.where(jnp.arange(width)[None] < self.counts[:, None], block, SINK)
        keys, values = (
            old.at[:, block, positions % slots].set(new.transpose(2, 0, 1, 3).astype(old.dtype))
            for old, new in zip(state, (key, value))
        )
        out = paged_attention(query, keys, values, self, positions, rule, sinks)
        return out.astype(query.dtype), (keys, values)


def paged_attention(
    query: Float[Array, "b t h c"],
    keys: Float[Array, "k blocks slots c"],
    values: Float[Array, "k blocks slots z"],
    pages: Paged,
    positions: Int[Array, "b t"],
    rule: AttentionRule,
    sinks: Float[Array, "h"] | None = None,
) -> Float[Array, "b t h z"]:
    """Attention of new tokens over the blocks of their rows; where a kernel would take over.

    Plain ``jax.numpy``: a running softmax over spans of the tables, from the first that a window
    leaves visible to the last that any row uses (Milakov and Gimelshein 2018,
    https://arxiv.org/abs/1805.02867; tables: Kwon et al. 2023, https://arxiv.org/abs/2309.06180).

    Args:
        query: new tokens' queries.
        keys: all blocks, the new tokens written.
        values: likewise.
        pages: the rows' tables and lengths.
        positions: those of the new tokens.
        rule: scale, window, soft cap.
        sinks: see ``ziggurat.kernels.attention``.
    """
    b, t, h, c = query.shape
    k, _, slots, _ = keys.shape
    g = h // k
    q = (query * rule.scale).reshape(b, t, k, g, c).transpose(2, 0, 3, 1, 4).reshape(k, b, g * t, c)
    rows = jnp.tile(positions, (1, g))[None, :, :, None]  # [1 b g*t 1]
    tables, taken, spans = _in_spans(pages.tables, slots, pages.span)

    def read(index, carry):
        peak, total, out = carry
        some = jax.lax.dynamic_slice_in_dim(tables, index * taken, taken, axis=1)
        here = [
            x[:, some].reshape(k, b, taken * slots, x.shape[3]).astype(query.dtype)
            for x in (keys, values)
        ]
        scores = jnp.einsum("kbnc,kbsc->kbns", q, here[0], preferred_element_type=jnp.float32)
        if rule.softcap is not None:
            scores = rule.softcap * jnp.tanh(scores / rule.softcap)
        at = index * taken * slots + jnp.arange(taken * slots)
        visible = at <= rows
        if rule.window is not None:
            visible &= at > rows - rule.window
        scores = jnp.where(visible, scores, HIDDEN)
        higher = jnp.maximum(peak, scores.max(-1, keepdims=True))
        weights = jnp.where(visible, jnp.exp(scores - higher), 0.0)
        shrink = jnp.exp(peak - higher)
        part = jnp.einsum("kbns,kbsz->kbnz", weights.astype(query.dtype), here[1])
        return higher, total * shrink + weights.sum(-1, keepdims=True), out * shrink + part

    shape = (k, b, g * t, 1)
    carry = (
        jnp.full(shape, HIDDEN),
        jnp.zeros(shape),
        jnp.zeros((*shape[:3], values.shape[3])),
    )
    if spans == 1:
        peak, total, out = read(0, carry)
    else:
        first, last = _visible(pages, rule.window, taken * slots)
        peak, total, out = jax.lax.fori_loop(first, last, read, carry)
    if sinks is not None:  # exp may overflow only where the sink takes everything
        sink = jnp.repeat(sinks.astype(jnp.float32).reshape(k, g), t, axis=1)
        total += jnp.exp(sink[:, None, :, None] - peak)
    out = (out / jnp.maximum(total, 1e-30)).reshape(k, b, g, t, -1)
    return out.transpose(1, 3, 0, 2, 4).reshape(b, t, h, -1)


def _in_spans(tables: Array, slots: int, span: int) -> tuple[Array, int, int]:
    """Tables padded to whole spans, blocks in a span, and number of spans."""
    pages = tables.shape[1]
    taken = min(max(span // slots, 1), pages)
    spans = -(-pages // taken)
    padding = ((0, 0), (0, spans * taken - pages))
    return jnp.pad(tables, padding, constant_values=SINK), taken, spans


def _visible(pages: Paged, window: int | None, span: int) -> tuple[Array, Array]:
    """The first span that a row sees, and the one after the last."""
    last = -(-jnp.max(pages.start + pages.counts) // span)
    if window is None:
        return jnp.zeros_like(last), last
    begins = jnp.where(pages.counts > 0, pages.start, jnp.iinfo(jnp.int32).max)
    return jnp.maximum(jnp.min(begins) - window + 1, 0) // span, last
