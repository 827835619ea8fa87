"""Attention through the paged key/value cache: an ``AttentionContext`` over tables of blocks.

A layer's keys and values are one array each, ``[k, blocks, slots, c]``, separate from those of
other layers, so that a compiled step that owns them writes new tokens in place.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.kernels.paged_attention import Cache, Rows, paged_attention
from ziggurat.nn.attention_context import AttentionRule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Paged:
    """Rows of different length, each with a table of the blocks that hold its tokens.

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
        state: Cache,
        sinks: Float[Array, "h"] | None = None,
    ) -> tuple[Float[Array, "b t h z"], Cache]:
        """Attention output of one layer, and its cache with the new tokens."""
        return paged_attention(
            query,
            key,
            value,
            state,
            Rows(self.tables, positions, self.counts),
            scale=rule.scale,
            softcap=rule.softcap,
            window=rule.window,
            sinks=sinks,
            implementation=self.implementation,
        )
