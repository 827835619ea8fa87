"""Concat and split: documents end to end, cut every T tokens."""

import threading

import numpy as np
from jaxtyping import Int64

from ziggurat.data.order import Permutation
from ziggurat.data.pieces import Lengths, Pieces, ragged

BLOCK = 32
"""Documents per entry of the table of token counts."""


class ConcatPlan:
    """Where every token stands when documents are laid end to end.

    The epoch's documents are cut into rows of T tokens; the last row is filled up with padding, so
    that no document runs into the next epoch. With ``shuffle`` the rows then come in an order of
    their own: the rows of one long document would otherwise fill whole batches. Memory is one
    number per ``BLOCK`` documents for each of the last two epochs.

    >>> plan = ConcatPlan(np.array([3, 4]), row_tokens=4, seed=0, shuffle=False)
    >>> plan.rows, plan.pieces(0, 0, 2).document.tolist(), plan.pieces(0, 0, 2).start.tolist()
    (2, [0, 1, 1], [0, 0, 1])
    """

    def __init__(self, lengths: Lengths, row_tokens: int, seed: int, shuffle: bool):
        self._lengths, self._row_tokens = lengths, row_tokens
        self._seed, self._shuffle = seed, shuffle
        self._tables: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._total = int(self._table(0)[-1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}

    @property
    def rows(self) -> int:
        return -(-self._total // self._row_tokens)

    @property
    def tokens(self) -> int:
        return self._total

    def pieces(self, epoch: int, first: int, stop: int) -> Pieces:
        rows = np.arange(first, stop, dtype=np.int64)
        if self._shuffle:
            rows = Permutation(self.rows, self._seed, epoch, "rows")(rows)
        low = rows * self._row_tokens
        high = np.minimum(low + self._row_tokens, self._total)
        row, documents, begins, ends = self._around(epoch, low, high)
        inside = np.flatnonzero((ends > low[row]) & (begins < high[row]))
        row, begins = row[inside], begins[inside]
        start = np.maximum(begins, low[row])
        return Pieces(
            row=row,
            column=start - low[row],
            document=documents[inside],
            start=start - begins,
            length=np.minimum(ends[inside], high[row]) - start,
        )

    def _around(
        self, epoch: int, low: Int64[np.ndarray, "r"], high: Int64[np.ndarray, "r"]
    ) -> tuple[
        Int64[np.ndarray, "n"],
        Int64[np.ndarray, "n"],
        Int64[np.ndarray, "n"],
        Int64[np.ndarray, "n"],
    ]:
        """All documents of the blocks that tokens ``low`` to ``high`` touch, for each row: the
        number of the row, the document, and where it begins and ends in the epoch."""
        table = self._table(epoch)
        near = table.searchsorted(low, side="right") - 1
        far = table.searchsorted(high, side="left")
        counts = np.minimum(far * BLOCK, len(self._lengths)) - near * BLOCK
        row, number = ragged(counts)
        documents = self._documents(epoch, (near * BLOCK)[row] + number)
        lengths = self._lengths[documents].astype(np.int64)
        ends = np.cumsum(lengths)
        head = np.cumsum(counts) - counts
        ends += (table[near] - ends[head] + lengths[head])[row]
        return row, documents, ends - lengths, ends

    def _documents(self, epoch: int, places: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        if not self._shuffle:
            return places
        return Permutation(len(self._lengths), self._seed, epoch, "documents")(places)

    def _table(self, epoch: int) -> Int64[np.ndarray, "blocks"]:
        """Tokens before each block of documents in the epoch's order, and the total."""
        key = epoch if self._shuffle else 0
        with self._lock:
            if key not in self._tables:
                while len(self._tables) >= 2:
                    del self._tables[next(iter(self._tables))]
                self._tables[key] = self._count(key)
            return self._tables[key]

    def _count(self, epoch: int) -> Int64[np.ndarray, "blocks"]:
        count, chunk = len(self._lengths), BLOCK * 1024
        sums = [np.zeros(1, np.int64)]
        for first in range(0, count, chunk):
            places = np.arange(first, min(first + chunk, count), dtype=np.int64)
            lengths = self._lengths[self._documents(epoch, places)].astype(np.int64)
            sums.append(np.add.reduceat(lengths, np.arange(0, len(lengths), BLOCK)))
        return np.cumsum(np.concatenate(sums))
