"""The key/value cache of one sequence, one pair of arrays per layer.

Layers are separate arrays, so that a compiled step that owns them writes a token in place and reads
only the slots in use; a stacked cache would be copied at every step.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.kernels.attention import AttentionMask
from ziggurat.nn.attention_context import AttentionRule, attend_by_rule

BLOCK = 512
"""Slots read at once; a longer cache is read in a loop up to the last slot in use."""
HIDDEN = -1e30

LayerCache = tuple[Float[Array, "b k s c"], Float[Array, "b k s z"]]
"""Keys and values of one layer; the token at position ``p`` lives in slot ``p``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotContext:
    """Attention through the cache: an ``AttentionContext`` whose state is one layer's cache.

    New tokens go to the slots from ``length`` on. Padding behind them is hidden by causality until
    the slots are written again.
    """

    length: Int[Array, ""]
    """Tokens in the cache before these."""

    @property
    def state(self) -> tuple[()]:
        return ()

    def advance(self, state: LayerCache, tokens: int) -> "SlotContext":
        return SlotContext(self.length + tokens)

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
        at = (0, 0, self.length, 0)
        keys, values = (
            jax.lax.dynamic_update_slice(old, new.transpose(0, 2, 1, 3).astype(old.dtype), at)
            for old, new in zip(state, (key, value))
        )
        if keys.shape[2] <= BLOCK:
            out = _attend_all(query, keys, values, positions, rule, sinks)
        else:
            last = self.length + query.shape[1]
            span = self.length, last
            out = _attend_blocks(query, keys, values, positions, rule, sinks, *span)
        return out.astype(query.dtype), (keys, values)


def _attend_all(query, keys, values, positions, rule: AttentionRule, sinks) -> Array:
    slots = jnp.broadcast_to(jnp.arange(keys.shape[2])[None], (keys.shape[0], keys.shape[2]))
    keys, values = (x.transpose(0, 2, 1, 3).astype(query.dtype) for x in (keys, values))
    mask = AttentionMask(positions, slots, window=rule.window)
    return attend_by_rule(query, keys, values, mask, rule, sinks)


def _attend_blocks(
    query, keys, values, positions, rule: AttentionRule, sinks, first, last
) -> Array:
    """The same with a running softmax over the blocks that hold a visible slot (Milakov and
    Gimelshein 2018, https://arxiv.org/abs/1805.02867)."""
    b, t, h, c = query.shape
    k = keys.shape[1]
    g = h // k
    q = (query * rule.scale).reshape(b, t, k, g, c).transpose(0, 2, 3, 1, 4).reshape(b, k, g * t, c)
    rows = jnp.tile(positions, (1, g))[:, None, :, None]  # [b 1 g*t 1]

    def block(index, carry):
        peak, total, out = carry
        at = (0, 0, index * BLOCK, 0)
        some = [
            jax.lax.dynamic_slice(x, at, (b, k, BLOCK, x.shape[3])).astype(query.dtype)
            for x in (keys, values)
        ]
        scores = jnp.einsum("bknc,bksc->bkns", q, some[0], preferred_element_type=jnp.float32)
        if rule.softcap is not None:
            scores = rule.softcap * jnp.tanh(scores / rule.softcap)
        slots = index * BLOCK + jnp.arange(BLOCK)
        visible = slots <= rows
        if rule.window is not None:
            visible &= slots > rows - rule.window
        scores = jnp.where(visible, scores, HIDDEN)
        higher = jnp.maximum(peak, scores.max(-1, keepdims=True))
        weights = jnp.where(visible, jnp.exp(scores - higher), 0.0)
        shrink = jnp.exp(peak - higher)
        part = jnp.einsum("bkns,bksc->bknc", weights.astype(query.dtype), some[1])
        return higher, total * shrink + weights.sum(-1, keepdims=True), out * shrink + part

    start = 0 if rule.window is None else jnp.maximum(first - rule.window + 1, 0) // BLOCK
    shape = (b, k, g * t, 1)
    carry = (jnp.full(shape, HIDDEN), jnp.zeros(shape), jnp.zeros((b, k, g * t, values.shape[3])))
    peak, total, out = jax.lax.fori_loop(start, -(-last // BLOCK), block, carry)
    if sinks is not None:  # exp may overflow only where the sink takes everything
        total += jnp.exp(jnp.repeat(sinks.reshape(k, g), t, axis=1)[None, :, :, None] - peak)
    out = (out / jnp.maximum(total, 1e-30)).reshape(b, k, g, t, -1)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, h, -1)
