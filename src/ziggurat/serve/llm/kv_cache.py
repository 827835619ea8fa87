"""Attention through the paged key/value cache: an ``AttentionContext`` over tables of blocks.

Layers whose keys and values are of equal dimensions share a pool, two arrays
``[k, layers * blocks, slots, c]`` in which each layer has its stretch of blocks. A compiled step
that owns them writes new tokens in place, and is handed two arrays however many layers there are:
giving an array and taking it back costs about 15 microseconds where a token takes milliseconds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.kernels.paged_attention import Cache, Rows, paged_attention
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import CacheShape


class LayerKVCache(NamedTuple):
    """Keys and values of one layer: a range of the blocks of a pool."""

    pool: Cache
    first: Int[Array, ""]
    """The pool's block that is the layer's number 0."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers, in blocks."""

    pools: tuple[Cache, ...]
    shapes: tuple[CacheShape, ...] = dataclasses.field(metadata={"static": True})
    """Of each layer, in order; those of equal shapes share a pool, the first shape the first."""

    @classmethod
    def empty(cls, shapes: Sequence[CacheShape], blocks: int, slots: int, dtype: Any) -> "KVCache":
        """An empty cache.

        Args:
            shapes: of each layer.
            blocks: of each layer, the sink included.
            slots: tokens in a block.
            dtype: of keys and values.
        """
        pools = [
            Cache(
                jnp.zeros((s.kv_heads, shapes.count(s) * blocks, slots, s.key_dim), dtype),
                jnp.zeros((s.kv_heads, shapes.count(s) * blocks, slots, s.value_dim), dtype),
            )
            for s in dict.fromkeys(shapes)
        ]
        return cls(tuple(pools), tuple(shapes))

    def of(self, layer: int) -> LayerKVCache:
        """Cache of one layer."""
        shape, number = self.shapes[layer], self._pool(layer)
        pool = self.pools[number]
        blocks = pool.keys.shape[1] // self.shapes.count(shape)
        return LayerKVCache(pool, jnp.int32(self.shapes[:layer].count(shape) * blocks))

    def after(self, layer: int, state: LayerKVCache) -> "KVCache":
        """Cache of all layers after one layer has written its new tokens."""
        pools = list(self.pools)
        pools[self._pool(layer)] = state.pool
        return dataclasses.replace(self, pools=tuple(pools))

    def _pool(self, layer: int) -> int:
        return list(dict.fromkeys(self.shapes)).index(self.shapes[layer])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Paged:
    """Context of rows of different lengths, each with a block table.

    The token at position ``p`` of a row lives in block ``tables[row, p // slots]``, slot
    ``p % slots``.
    """

    tables: Int[Array, "b pages"]
    start: Int[Array, "b"]
    """Tokens in the cache before these."""
    counts: Int[Array, "b"]
    """New tokens; 0 for a row that is padding as a whole."""
    implementation: str = dataclasses.field(default="auto", metadata={"static": True})
    """Kernel, see ``ziggurat.kernels.paged_attention``."""

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
        state: LayerKVCache,
        sinks: Float[Array, "h"] | None = None,
    ) -> tuple[Float[Array, "b t h z"], LayerKVCache]:
        """Attention output of one layer, and its cache with the new tokens."""
        out, pool = paged_attention(
            query,
            key,
            value,
            state.pool,
            Rows(self.tables + state.first, positions, self.counts),
            scale=rule.scale,
            softcap=rule.softcap,
            window=rule.window,
            sinks=sinks,
            implementation=self.implementation,
        )
        return out, state._replace(pool=pool)
