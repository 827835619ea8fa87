"""Rows of token ids through an encoder in programs of a few shapes."""

import collections
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ModelError
from ziggurat.data.vocabulary import check_ids
from ziggurat.models.traced_model import Params

SHORTEST = 16
"""Tokens of the smallest program; the next ones double."""
RowFunction = Callable[
    [Params, Int[Array, "b t"], Int[Array, "b t"], Int[Array, "b t"]], Float[Array, "b e"]
]
"""``params, tokens, mask, token types`` to a vector for each row."""


class RowPrograms:
    """A function of rows of tokens, compiled for a few lengths and batch sizes.

    Rows are padded to one of a few lengths and batches to a power of four, so that a few programs,
    compiled at first use or by :meth:`warm_up`, serve everything.

    Args:
        function: what is computed.
        params: its parameters.
        max_length: longest row in tokens.
        width: length of the vectors.
        vocab_size: ids are below this.
        max_batch: most rows in one program.
    """

    def __init__(
        self,
        function: RowFunction,
        params: Params,
        *,
        max_length: int,
        width: int,
        vocab_size: int,
        max_batch: int,
    ):
        self.params, self.max_length, self.max_batch = params, max_length, max_batch
        self.width, self.vocab_size = width, vocab_size
        doubled = [SHORTEST * 2**i for i in range(32) if SHORTEST * 2**i < max_length]
        self.lengths = (*doubled, max_length)
        """Lengths in tokens that programs exist for."""
        self.batches = (*(4**i for i in range(16) if 4**i < max_batch), max_batch)
        """Numbers of rows that they exist for."""
        self._run = jax.jit(function)

    def __call__(
        self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> Float[np.ndarray, "n e"]:
        """A vector for each row, float32.

        Args:
            rows: token ids, special ones included.
            types: which text each token is of; default the first.

        Raises:
            ModelError: a row has no tokens, or more than ``max_length``.
            DataError: it has an id beyond ``vocab_size``.
        """
        groups: dict[int, list[int]] = collections.defaultdict(list)
        for text, row in enumerate(rows):
            if not 1 <= len(row) <= self.max_length:
                raise ModelError(
                    f"text {text}",
                    found=f"{len(row)} tokens",
                    expected=f"1 to {self.max_length}",
                    fix="cut it, or split it into several texts",
                )
            check_ids(row, self.vocab_size, f"text {text}")
            groups[next(n for n in self.lengths if n >= len(row))].append(text)
        types = [[0] * len(row) for row in rows] if types is None else types
        out = np.empty((len(rows), self.width), np.float32)
        for length, texts in groups.items():
            for start in range(0, len(texts), self.max_batch):
                chosen = texts[start : start + self.max_batch]
                part, kinds = ([which[text] for text in chosen] for which in (rows, types))
                out[chosen] = self._batch(part, kinds, length)
        return out

    def warm_up(self) -> None:
        """Compile every program."""
        for length in self.lengths:
            for size in self.batches:
                self._batch([[0]] * size, [[0]] * size, length)

    def _batch(
        self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]], length: int
    ) -> Float[np.ndarray, "n e"]:
        size = next(size for size in self.batches if size >= len(rows))
        tokens, mask, kinds = np.zeros((3, size, length), np.int32)
        for i, (row, kind) in enumerate(zip(rows, types)):
            tokens[i, : len(row)], kinds[i, : len(row)], mask[i, : len(row)] = row, kind, 1
        return np.asarray(self._run(self.params, tokens, mask, kinds))[: len(rows)]
