"""Bins: whole documents together in nearly full rows, made once and kept on disk.

The documents, in an order that depends neither on the seed nor on the epoch, fall into windows.
Documents longer than T are cut into pieces of T and a rest; then, longest first, each piece of a
window goes into a row of that window:

* first fit: the first row with room for it. Johnson, "Near-optimal bin packing algorithms", 1973.
* best fit: the row with the least room that still holds it. Ding et al., "Fewer Truncations Improve
  Language Modeling", 2024.

Every epoch has the same rows in another order, so the plan is a file that all processes map:

* ``first.bin`` (int64 ``[rows + 1]``): row r holds pieces ``first[r]`` to ``first[r + 1]``.
* ``document.bin`` (int64), ``part.bin`` (uint32), ``length.bin`` (uint32): of each piece its
  document, which T tokens of that document, and how many tokens.
* ``meta.json``: format and counts.
"""

import bisect
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt32

from ziggurat.core import atomic
from ziggurat.data.order import Permutation
from ziggurat.data.pieces import Lengths, Pieces, ragged

logger = logging.getLogger(__name__)

FORMAT = 1
Kind = Literal["first_fit", "best_fit"]
_COLUMNS = {"document": "<i8", "part": "<u4", "length": "<u4"}


@dataclasses.dataclass(frozen=True)
class Bins:
    """Rows and the documents that stand in each."""

    path: Path | None
    """The directory that holds them; None if only memory does."""
    tokens: int
    """Tokens in all rows."""
    first: Int64[np.ndarray, "rows_plus_1"]
    document: Int64[np.ndarray, "p"]
    part: UInt32[np.ndarray, "p"]
    length: UInt32[np.ndarray, "p"]

    def __reduce__(self):
        if self.path is None:
            return Bins, tuple(getattr(self, f.name) for f in dataclasses.fields(self))
        return _open, (self.path,)


class BinsPlan:
    """Packing plan of whole documents in rows, in a keyed order each epoch.

    Args:
        kind: ``first_fit`` or ``best_fit``.
        lengths: of all documents.
        row_tokens: T.
        seed: keys the order of the rows.
        shuffle: give each epoch its own order, and mix documents before they fall into windows.
        window: documents considered together.
        kept: the directory in which the bins are kept; its name must say what they are made from.
            None keeps them in memory.

    >>> plan = BinsPlan("best_fit", np.array([7, 6, 4, 3]), 10, seed=0, shuffle=False)
    >>> plan.rows, plan.pieces(0, 0, 2).document.tolist(), plan.pieces(0, 0, 2).column.tolist()
    (2, [0, 3, 1, 2], [0, 7, 0, 6])
    """

    def __init__(
        self,
        kind: Kind,
        lengths: Lengths,
        row_tokens: int,
        seed: int,
        shuffle: bool,
        window: int = 1024,
        kept: Path | None = None,
    ):
        self._row_tokens, self._seed, self._shuffle = row_tokens, seed, shuffle
        windows = _windows(kind, lengths, row_tokens, shuffle, window)
        self._bins = _in_memory(windows) if kept is None else _on_disk(windows, kept)

    @property
    def rows(self) -> int:
        return len(self._bins.first) - 1

    @property
    def tokens(self) -> int:
        return self._bins.tokens

    def pieces(self, epoch: int, first: int, stop: int) -> Pieces:
        rows = np.arange(first, stop, dtype=np.int64)
        if self._shuffle:
            rows = Permutation(self.rows, self._seed, epoch, "rows")(rows)
        begin = self._bins.first[rows]
        counts = self._bins.first[rows + 1] - begin
        row, number = ragged(counts)
        which = begin[row] + number
        length = self._bins.length[which].astype(np.int64)
        ends = np.cumsum(length)
        head = np.cumsum(counts) - counts
        return Pieces(
            row=row,
            column=ends - length - (ends[head] - length[head])[row],
            document=self._bins.document[which],
            start=self._bins.part[which].astype(np.int64) * self._row_tokens,
            length=length,
        )


_Window = dict[str, np.ndarray]
"""One window's pieces, by column, in the order of rows; and ``counts``, the pieces in each row."""


def _windows(
    kind: Kind, lengths: Lengths, row_tokens: int, shuffle: bool, window: int
) -> Iterator[_Window]:
    count = len(lengths)
    order = Permutation(count, 0, 0, "windows")
    for first in range(0, count, window):
        places = np.arange(first, min(first + window, count), dtype=np.int64)
        documents = order(places) if shuffle else places
        yield _pack(kind, documents, lengths[documents].astype(np.int64), row_tokens)


def _pack(
    kind: Kind,
    documents: Int64[np.ndarray, "n"],
    lengths: Int64[np.ndarray, "n"],
    row_tokens: int,
) -> _Window:
    which, part = ragged(-(-lengths // row_tokens))
    length = np.minimum(lengths[which] - part * row_tokens, row_tokens)
    turn = np.argsort(-length, kind="stable")
    which, part, length = which[turn], part[turn], length[turn]
    place = _first_fit if kind == "first_fit" else _best_fit
    row = np.array(place(length.tolist(), row_tokens), np.int64)
    turn = np.argsort(row, kind="stable")
    return {
        "document": documents[which[turn]],
        "part": part[turn],
        "length": length[turn],
        "counts": np.bincount(row),
    }


def _first_fit(lengths: list[int], row_tokens: int) -> list[int]:
    """The row of each piece; ``lengths`` fall."""
    free = np.full(len(lengths), row_tokens, np.int64)
    rows, least, full, used = [], lengths[-1], 0, 0
    for tokens in lengths:
        row = full + int((free[full : used + 1] >= tokens).argmax())
        free[row] -= tokens
        used = max(used, row + 1)
        while full < used and free[full] < least:
            full += 1
        rows.append(row)
    return rows


def _best_fit(lengths: list[int], row_tokens: int) -> list[int]:
    """The row of each piece; ``lengths`` fall."""
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    rows, used = [], 0
    for tokens in lengths:
        place = bisect.bisect_left(room, (tokens, -1))
        if place < len(room):
            free, row = room.pop(place)
        else:
            free, row, used = row_tokens, used, used + 1
        rows.append(row)
        if free > tokens:
            bisect.insort(room, (free - tokens, row))
    return rows


def _in_memory(windows: Iterator[_Window]) -> Bins:
    made = list(windows)
    columns = {
        name: np.concatenate([window[name] for window in made]).astype(dtype)
        for name, dtype in _COLUMNS.items()
    }
    counts = np.concatenate([np.zeros(1, np.int64), *(window["counts"] for window in made)])
    return Bins(None, int(columns["length"].sum(dtype=np.int64)), np.cumsum(counts), **columns)


def _on_disk(windows: Iterator[_Window], path: Path) -> Bins:
    if path.exists():
        try:
            return _open(path)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("packed rows %s: %s; made anew", path, error)
            atomic.remove_directory(path)
    logger.info("packing rows into %s", path)
    try:
        with atomic.new_directory(path) as directory:
            _write(directory, windows)
    except OSError:
        if not path.exists():
            raise
        logger.info("another process made %s", path)
    return _open(path)


def _write(directory: Path, windows: Iterator[_Window]) -> None:
    files = {name: open(directory / f"{name}.bin", "wb") for name in (*_COLUMNS, "first")}  # noqa: SIM115
    try:
        rows, pieces, tokens = 0, 0, 0
        files["first"].write(np.zeros(1, "<i8").tobytes())
        for window in windows:
            for name, dtype in _COLUMNS.items():
                files[name].write(window[name].astype(dtype).tobytes())
            first = pieces + np.cumsum(window["counts"])
            files["first"].write(first.astype("<i8").tobytes())
            rows, pieces = rows + len(first), int(first[-1])
            tokens += int(window["length"].sum())
    finally:
        for file in files.values():
            file.close()
    meta = {"format": FORMAT, "rows": rows, "pieces": pieces, "tokens": tokens}
    (directory / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _open(path: Path) -> Bins:
    """Map kept bins.

    Raises:
        OSError, ValueError, KeyError: a file is missing, of another size or format.
    """
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']}")
    dtypes = {"first": "<i8", **_COLUMNS}
    arrays = {n: np.asarray(np.memmap(path / f"{n}.bin", d, "r")) for n, d in dtypes.items()}
    sizes = {n: len(array) for n, array in arrays.items()}
    if sizes != dict.fromkeys(_COLUMNS, meta["pieces"]) | {"first": meta["rows"] + 1}:
        raise ValueError(f"sizes {sizes}")
    return Bins(path, meta["tokens"], **arrays)
