"""Who may attend to whom, as positions and segments rather than as a stored matrix."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """A causal mask inside documents, optionally a sliding window.

    A query at position ``p`` of segment ``g`` sees keys of segment ``g`` at positions in
    ``(p - window, p]``; without ``causal``, on both sides: ``(p - window, p + window)``.

    >>> import jax.numpy as jnp
    >>> p = jnp.arange(3)[None]
    >>> AttentionMask(p, p, causal=True, window=2).dense()[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    >>> AttentionMask(p, p, causal=False, window=2).dense()[0].astype(int).tolist()
    [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    """

    query_positions: Int[Array, "b t"]
    """Position of each query in its document."""
    key_positions: Int[Array, "b s"]
    """Position of each key in its document."""
    query_segments: Int[Array, "b t"] | None = None
    """Document of each query; ``None``: one document a row."""
    key_segments: Int[Array, "b s"] | None = None
    """Document of each key."""
    causal: bool = dataclasses.field(default=True, metadata={"static": True})
    """Keys after the query are hidden."""
    aligned: bool = dataclasses.field(default=False, metadata={"static": True})
    """Query ``i`` and key ``i`` are the same token, in order of position within every document (a
    whole row attends to itself); then no query sees a key of a higher index."""
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    """Number of keys seen to one side, the query's own included; ``None``: all."""
    query_last: Int[Array, "b t"] | None = None
    """Position of the last key that each query of a causal mask sees; ``None``: its own. Tokens of
    an image see one another by it. ``grouped`` and ``reference`` take it."""

    def block(self, start: int, stop: int) -> tuple["AttentionMask", slice]:
        """The mask of queries ``start`` to ``stop``, and the only keys they can see; aligned."""
        assert self.aligned
        assert self.causal
        first = 0 if self.window is None else max(0, start - self.window + 1)
        rows, columns = slice(start, stop), slice(first, stop)

        def cut(x: Array | None, part: slice) -> Array | None:
            return None if x is None else x[:, part]

        mask = AttentionMask(
            self.query_positions[:, rows],
            self.key_positions[:, columns],
            cut(self.query_segments, rows),
            cut(self.key_segments, columns),
            window=self.window,
        )
        return mask, columns

    def dense(self) -> Bool[Array, "b t s"]:
        """The mask as a matrix; ``True`` where the query may see the key."""
        distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
        visible = jnp.ones_like(distance, bool)
        if self.causal:
            last = self.query_positions if self.query_last is None else self.query_last
            visible = last[:, :, None] >= self.key_positions[:, None, :]
        if self.window is not None:
            visible &= (distance if self.causal else jnp.abs(distance)) < self.window
        if self.query_segments is not None and self.key_segments is not None:
            visible &= self.query_segments[:, :, None] == self.key_segments[:, None, :]
        return visible
