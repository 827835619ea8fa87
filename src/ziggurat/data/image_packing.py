"""Packing of records with images: whole records in rows, each row within several limits.

Records are never cut. In an order that depends neither on seed nor epoch they fall into windows;
within a window, longest first, each goes into the first row that has room for its tokens and for
all that its images need (first fit, Johnson 1973). Every epoch has the same rows, in another order.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from ziggurat.data.order import Permutation


class ImageRows:
    """The endless list of rows of a set of records: its epochs one after the other.

    Args:
        needs: of each record, its tokens and what its images need, in the order of ``room``.
        room: of a row, the same limits.
        window: records that are packed together; 1 gives each record its own row.
        seed: keys the order of rows.
        shuffle: whether each epoch has its own order.

    >>> rows = ImageRows(np.array([[6, 1], [5, 1], [3, 2]]), (10, 2), 4, seed=0, shuffle=False)
    >>> [found.tolist() for found in rows.records(0, 3)]
    [[0], [1], [2]]
    >>> rows = ImageRows(np.array([[6, 1], [5, 0], [4, 1]]), (10, 2), 4, seed=0, shuffle=False)
    >>> rows.records(0, 1)[0].tolist()
    [0, 2]
    """

    def __init__(
        self,
        needs: Int64[np.ndarray, "n k"],
        room: Sequence[int],
        window: int,
        seed: int,
        shuffle: bool,
    ):
        self._seed, self._shuffle = seed, shuffle
        order = np.arange(len(needs))
        if shuffle:
            order = Permutation(len(needs), 0, 0, "windows")(order)
        packed: list[list[int]] = []
        for start in range(0, len(order), window):
            packed += _first_fit(order[start : start + window], needs, room)
        self._first = np.cumsum([0, *map(len, packed)])
        self._records = np.array([number for row in packed for number in row], np.int64)

    @property
    def count(self) -> int:
        """Rows of one epoch."""
        return len(self._first) - 1

    def records(self, first: int, stop: int) -> list[Int64[np.ndarray, "_"]]:
        """Numbers of the records in rows ``first`` to ``stop`` of the endless list."""
        epochs, rows = np.divmod(np.arange(first, stop), self.count)
        if self._shuffle:
            for epoch in np.unique(epochs).tolist():
                mine = epochs == epoch
                rows[mine] = Permutation(self.count, self._seed, epoch, "rows")(rows[mine])
        return [self._records[self._first[row] : self._first[row + 1]] for row in rows]


def _first_fit(
    numbers: Int64[np.ndarray, "w"], needs: Int64[np.ndarray, "n k"], room: Sequence[int]
) -> list[list[int]]:
    """Records of each row of a window; a row's are in the order in which they came."""
    free = np.tile(np.array(room, np.int64), (len(numbers), 1))
    rows: list[list[int]] = []
    for number in numbers[np.argsort(-needs[numbers, 0], kind="stable")].tolist():
        fits = (free[: len(rows) + 1] >= needs[number]).all(axis=1)
        row = int(fits.argmax())
        free[row] -= needs[number]
        if row == len(rows):
            rows.append([])
        rows[row].append(number)
    return rows
