"""Packing: which pieces of which documents stand in which row, from document lengths alone.

A plan answers for any range of rows of any epoch without walking through the rows before. Every
plan has the same number of rows in each epoch, so row numbers run on through the epochs by
division.

* :class:`ConcatPlan` lays the documents end to end in the epoch's order and cuts every T tokens. No
  token of padding but at the end of the epoch; most rows start and end inside a document.
* :class:`BestFitPlan` puts whole documents together so that rows are nearly full; only documents
  longer than T are cut. Ding et al., "Fewer Truncations Improve Language Modeling", 2024.
* :class:`SinglePlan` gives each document its own row, cut at T.
"""

import bisect
import dataclasses
import threading
from typing import Annotated, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer
from pydantic import Discriminator

from ziggurat.core import config
from ziggurat.core.protocols import Batch
from ziggurat.data.order import Permutation

BLOCK = 64
"""Documents per entry of the concat plan's table of token counts."""


@config.node
class Concat:
    """Documents end to end, cut every ``sequence_length`` tokens."""

    kind: Literal["concat"] = "concat"


@config.node
class BestFit:
    """Whole documents together in nearly full rows."""

    kind: Literal["best_fit"] = "best_fit"
    window: int = 1024
    """Documents considered together; more fill rows better."""

    def __post_init__(self) -> None:
        config.require(self.window > 0, "window", self.window, "a positive number of documents")


@config.node
class Single:
    """One document a row, padded, or cut after ``sequence_length`` tokens."""

    kind: Literal["none"] = "none"


Packing = Annotated[Concat | BestFit | Single, Discriminator("kind")]


@runtime_checkable
class Lengths(Protocol):
    """Document lengths in tokens, each at least 1: an array, or something that reads like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, documents: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Runs of tokens placed in rows, sorted by row and column."""

    row: Int64[np.ndarray, "p"]
    """Row, counted from the first row asked for."""
    column: Int64[np.ndarray, "p"]
    """Where in the row the piece starts."""
    document: Int64[np.ndarray, "p"]
    start: Int64[np.ndarray, "p"]
    """Where in the document the piece starts."""
    length: Int64[np.ndarray, "p"]
    """Tokens."""

    @classmethod
    def join(cls, parts: "list[tuple[int, Pieces]]") -> "Pieces":
        """Several plans' answers as one, each with its rows moved by an offset."""
        moved = [dataclasses.replace(pieces, row=pieces.row + first) for first, pieces in parts]
        names = [field.name for field in dataclasses.fields(cls)]
        empty = np.zeros(0, np.int64)
        return cls(**{n: np.concatenate([empty, *(getattr(m, n) for m in moved)]) for n in names})


@runtime_checkable
class Plan(Protocol):
    """Where every token of an epoch stands."""

    @property
    def rows(self) -> int:
        """Rows of one epoch, the same in all."""
        ...

    def pieces(self, epoch: int, first: int, stop: int) -> Pieces:
        """What stands in rows ``first`` to ``stop`` (exclusive) of ``epoch``."""
        ...


def plan(
    packing: Concat | BestFit | Single, lengths: Lengths, row_tokens: int, seed: int, shuffle: bool
) -> Plan:
    """The plan a configuration asks for; see the classes.

    >>> order = plan(Concat(), np.array([3, 4]), row_tokens=4, seed=0, shuffle=False)
    >>> order.rows, order.pieces(0, 0, 2).document.tolist(), order.pieces(0, 0, 2).start.tolist()
    (2, [0, 1, 1], [0, 0, 1])
    """
    if isinstance(packing, Concat):
        return ConcatPlan(lengths, row_tokens, seed, shuffle)
    if isinstance(packing, BestFit):
        return BestFitPlan(lengths, row_tokens, seed, shuffle, packing.window)
    return SinglePlan(lengths, row_tokens, seed, shuffle)


def _order(
    count: int, seed: int, epoch: int, shuffle: bool, purpose: str, places: np.ndarray
) -> Int64[np.ndarray, "n"]:
    return Permutation(count, seed, epoch, purpose)(places) if shuffle else places


class ConcatPlan:
    """Concat and split.

    The epoch's documents are laid end to end and cut into rows of T tokens; the last is filled up
    with padding, so that no document runs into the next epoch. With ``shuffle`` the rows then come
    in an order of their own: the rows of one long document would otherwise fill whole batches.
    Memory is one number per ``BLOCK`` documents for each of the last two epochs.
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

    def pieces(self, epoch: int, first: int, stop: int) -> Pieces:
        if not self._shuffle:
            return self._cut(epoch, first, stop)
        places = np.arange(first, stop, dtype=np.int64)
        rows = _order(self.rows, self._seed, epoch, True, "rows", places).tolist()
        return Pieces.join([(n, self._cut(epoch, row, row + 1)) for n, row in enumerate(rows)])

    def _cut(self, epoch: int, first: int, stop: int) -> Pieces:
        """Rows ``first`` to ``stop`` of the documents laid end to end."""
        size = self._row_tokens
        low, high = first * size, min(stop * size, self._total)
        table = self._table(epoch)
        near = int(np.searchsorted(table, low, side="right")) - 1
        far = int(np.searchsorted(table, high, side="left"))
        places = np.arange(near * BLOCK, min(far * BLOCK, len(self._lengths)), dtype=np.int64)
        documents = self._documents(epoch, places)
        ends = table[near] + np.cumsum(self._lengths[documents], dtype=np.int64)
        begins = np.concatenate([table[near : near + 1], ends[:-1]])
        inside = (ends > low) & (begins < high)
        documents, begins, ends = documents[inside], begins[inside], ends[inside]
        clipped, last = np.maximum(begins, low), np.minimum(ends, high)
        # A document has one piece in each row that it touches.
        spans = (last - 1) // size - clipped // size + 1
        which = np.repeat(np.arange(len(documents)), spans)
        number = np.arange(len(which)) - np.repeat(np.cumsum(spans) - spans, spans)
        row = clipped[which] // size + number
        piece_low = np.maximum(clipped[which], row * size)
        piece_high = np.minimum(last[which], (row + 1) * size)
        return Pieces(
            row=row - first,
            column=piece_low - row * size,
            document=documents[which],
            start=piece_low - begins[which],
            length=piece_high - piece_low,
        )

    def _documents(self, epoch: int, places: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        count = len(self._lengths)
        return _order(count, self._seed, epoch, self._shuffle, "documents", places)

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
        count, chunk = len(self._lengths), BLOCK * 512
        sums = [np.zeros(1, np.int64)]
        for first in range(0, count, chunk):
            places = np.arange(first, min(first + chunk, count), dtype=np.int64)
            lengths = self._lengths[self._documents(epoch, places)].astype(np.int64)
            sums.append(np.add.reduceat(lengths, np.arange(0, len(lengths), BLOCK)))
        return np.cumsum(np.concatenate(sums))


class BestFitPlan:
    """Best-fit decreasing within windows of documents.

    The documents, in an order keyed by the seed, fall into windows. Documents longer than T are cut
    into pieces of T and a rest; then, longest first, each piece goes into the row of its window
    with the least room that still holds it. Rows are made once and come in another order each
    epoch, so every epoch has the same rows.
    """

    def __init__(
        self, lengths: Lengths, row_tokens: int, seed: int, shuffle: bool, window: int = 1024
    ):
        self._seed, self._shuffle = seed, shuffle
        count, made, rows = len(lengths), [], 0
        for first in range(0, count, window):
            places = np.arange(first, min(first + window, count), dtype=np.int64)
            documents = _order(count, seed, 0, shuffle, "windows", places)
            pieces, used = _best_fit(documents, lengths[documents].astype(np.int64), row_tokens)
            made.append((rows, pieces))
            rows += used
        self._pieces = Pieces.join(made)
        self._first = np.searchsorted(self._pieces.row, np.arange(rows + 1))
        self._rows = rows

    @property
    def rows(self) -> int:
        return self._rows

    def pieces(self, epoch: int, first: int, stop: int) -> Pieces:
        places = np.arange(first, stop, dtype=np.int64)
        rows = _order(self._rows, self._seed, epoch, self._shuffle, "rows", places)
        counts = self._first[rows + 1] - self._first[rows]
        row = np.repeat(np.arange(len(rows)), counts)
        number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        which = self._first[rows][row] + number
        held = self._pieces
        return Pieces(
            row, held.column[which], held.document[which], held.start[which], held.length[which]
        )


def _best_fit(
    documents: Int64[np.ndarray, "n"], lengths: Int64[np.ndarray, "n"], row_tokens: int
) -> tuple[Pieces, int]:
    """Pack one window; returns the pieces sorted by row and column, and the number of rows."""
    parts = -(-lengths // row_tokens)
    which = np.repeat(np.arange(len(documents)), parts)
    start = (np.arange(len(which)) - np.repeat(np.cumsum(parts) - parts, parts)) * row_tokens
    length = np.minimum(lengths[which] - start, row_tokens)
    turn = np.argsort(-length, kind="stable")
    which, start, length = which[turn], start[turn], length[turn]
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    row, column, rows = np.empty_like(start), np.empty_like(start), 0
    for number, tokens in enumerate(length.tolist()):
        place = bisect.bisect_left(room, (tokens, -1))
        if place < len(room):
            free, chosen = room.pop(place)
        else:
            free, chosen, rows = row_tokens, rows, rows + 1
        row[number], column[number] = chosen, row_tokens - free
        if free > tokens:
            bisect.insort(room, (free - tokens, chosen))
    turn = np.lexsort((column, row))
    return Pieces(row[turn], column[turn], documents[which][turn], start[turn], length[turn]), rows


class SinglePlan:
    """One document a row; what is longer than T is cut off and never seen."""

    def __init__(self, lengths: Lengths, row_tokens: int, seed: int, shuffle: bool):
        self._lengths, self._row_tokens = lengths, row_tokens
        self._seed, self._shuffle = seed, shuffle

    @property
    def rows(self) -> int:
        return len(self._lengths)

    def pieces(self, epoch: int, first: int, stop: int) -> Pieces:
        places = np.arange(first, stop, dtype=np.int64)
        documents = _order(self.rows, self._seed, epoch, self._shuffle, "documents", places)
        zero = np.zeros_like(places)
        length = np.minimum(self._lengths[documents].astype(np.int64), self._row_tokens)
        return Pieces(places - first, zero, documents, zero, length)


def assemble(
    pieces: Pieces,
    tokens: Integer[np.ndarray, "n"],
    begins: Int64[np.ndarray, "p"],
    lengths: Int64[np.ndarray, "p"],
    *,
    rows: int,
    row_tokens: int,
    positions: Literal["document", "row"] = "document",
) -> Batch:
    """Fill rows with the tokens of ``pieces``.

    The target of a token is the one after it in its document, also where the piece ends before the
    document does; a document's last token (its eos) has none, so its loss mask is 0. Padding is 0
    in every array.

    Args:
        pieces: what stands where.
        tokens: all documents' tokens end to end.
        begins: for each piece, where its document begins in ``tokens``.
        lengths: for each piece, its document's length.
        rows: rows to make.
        row_tokens: T.
        positions: count from the start of the ``document``, or of its piece in the ``row``.

    Returns:
        A :data:`ziggurat.core.protocols.Batch`.
    """
    piece = np.repeat(np.arange(len(pieces.row)), pieces.length)
    within = np.arange(len(piece)) - np.repeat(
        np.cumsum(pieces.length) - pieces.length, pieces.length
    )
    position = pieces.start[piece] + within
    source = begins[piece] + position
    target = (pieces.row * row_tokens + pieces.column)[piece] + within
    learned = position + 1 < lengths[piece]
    following = tokens[np.minimum(source + 1, len(tokens) - 1)]
    first_of_row = np.searchsorted(pieces.row, pieces.row)
    segment = np.arange(len(pieces.row)) - first_of_row + 1

    def placed(values: np.ndarray, dtype: type) -> np.ndarray:
        flat = np.zeros(rows * row_tokens, dtype)
        flat[target] = values
        return flat.reshape(rows, row_tokens)

    return {
        "tokens": placed(tokens[source], np.int32),
        "targets": placed(np.where(learned, following, 0), np.int32),
        "segment_ids": placed(segment[piece], np.int32),
        "positions": placed(position if positions == "document" else within, np.int32),
        "loss_mask": placed(learned, np.float32),
    }
