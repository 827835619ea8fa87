"""Pieces of documents placed in rows, and the batch that they make."""

import dataclasses
from collections.abc import Iterable
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, Integer, UInt8

from ziggurat.core.protocols import Batch

POSITION_LIMIT = 1 << 17
"""Bound on positions where no model gives one. Rotary angles are float32: at this position the
fastest is off by 2^-7 rad, at 2^24 neighbours are no longer told apart."""


@runtime_checkable
class Lengths(Protocol):
    """Document lengths in tokens, each at least 1: an array, or something that reads like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, documents: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Runs of tokens with their places in rows, sorted by row and column."""

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
    def join(cls, parts: "Iterable[tuple[int, Pieces]]") -> "Pieces":
        """Several plans' answers as one, each with its rows moved by an offset."""
        moved = [dataclasses.replace(pieces, row=pieces.row + first) for first, pieces in parts]
        if len(moved) == 1:
            return moved[0]
        names = [field.name for field in dataclasses.fields(cls)]
        empty = np.zeros(0, np.int64)
        return cls(**{n: np.concatenate([empty, *(getattr(m, n) for m in moved)]) for n in names})


@runtime_checkable
class PackingPlan(Protocol):
    """Interface of a packing plan: the place of every token of an epoch."""

    @property
    def rows(self) -> int:
        """Rows of one epoch, the same in all."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that stand in the rows of one epoch."""
        ...

    def pieces(self, epoch: int, first: int, stop: int) -> Pieces:
        """Pieces in rows ``first`` to ``stop`` (exclusive) of ``epoch``."""
        ...


def ragged(
    counts: Int64[np.ndarray, "runs"],
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """For each entry of runs laid end to end: its run, and its number within the run.

    >>> [array.tolist() for array in ragged(np.array([2, 0, 3]))]
    [[0, 0, 2, 2, 2], [0, 1, 0, 1, 2]]
    """
    ends = np.cumsum(counts)
    run = np.repeat(np.arange(len(counts)), counts)
    return run, np.arange(len(run)) - np.repeat(ends - counts, counts)


def assemble(
    pieces: Pieces,
    tokens: Integer[np.ndarray, "n"],
    begins: Int64[np.ndarray, "p"],
    lengths: Int64[np.ndarray, "p"],
    *,
    rows: int,
    row_tokens: int,
    positions: Literal["document", "row"] = "document",
    position_limit: int = POSITION_LIMIT,
    learn: UInt8[np.ndarray, "n"] | None = None,
) -> Batch:
    """Fill rows with the tokens of ``pieces``.

    The target of a token is the one after it in its document, also where the piece ends before the
    document does. The loss mask is 1 where a target exists and is learned: a document's last token
    (its eos) has none. Padding is 0 in every array.

    Args:
        pieces: what stands where.
        tokens: all documents' tokens end to end.
        begins: for each piece, where its document begins in ``tokens``.
        lengths: for each piece, its document's length.
        rows: rows to make.
        row_tokens: T.
        positions: count from the start of the ``document``, or of its piece in the ``row``.
        position_limit: a piece that would reach this position or pass it counts from its own start,
            so that all positions are below the larger of this and T.
        learn: for each of ``tokens``, whether it is learned as a target; None for all of them.

    Returns:
        A :data:`ziggurat.core.protocols.Batch`.
    """
    shape, size = (rows, row_tokens), rows * row_tokens
    if not len(pieces.row):
        return empty(*shape)
    # Gaps of padding become runs of their own, so that all arrays are made without scattering.
    place = pieces.row * row_tokens + pieces.column
    ends = place + pieces.length
    edges = np.concatenate([[0], np.stack([place, ends], 1).ravel(), [size]])
    counts = np.diff(edges)

    def spread(values: np.ndarray, dtype: type) -> np.ndarray:
        """A value for each piece, and 0 for each gap, repeated over its tokens."""
        both = np.zeros(len(counts), dtype)
        both[1::2] = values
        return np.repeat(both, counts)

    begin = begins + pieces.start
    source = spread(begin - place, np.int64)
    source += np.arange(size)
    # Padding reads anything and is cleared below; its number may lie beyond the store.
    found = tokens.take(source, mode="clip")
    following = np.minimum(begin + pieces.length, len(tokens) - 1)
    exists = pieces.start + pieces.length < lengths
    targets = np.zeros(size, np.int32)
    targets[:-1] = found[1:]
    targets[ends - 1] = tokens[following] * exists
    mask = _loss_mask(source, ends - 1, following, exists, learn)
    first = pieces.row.searchsorted(pieces.row)
    batch = {
        "tokens": found.astype(np.int32),
        "targets": targets,
        "segment_ids": spread(np.arange(1, len(first) + 1) - first, np.int32),
        "positions": np.arange(size, dtype=np.int32),
        "loss_mask": mask,
    }
    within = pieces.start + pieces.length <= position_limit
    counted = np.where(within, pieces.start, 0) if positions == "document" else 0
    batch["positions"] += spread(counted - place, np.int32)
    for low, high in _gaps(edges, counts):
        for values in batch.values():
            values[low:high] = 0
    return {name: values.reshape(shape) for name, values in batch.items()}


def _loss_mask(
    source: np.ndarray,
    last: np.ndarray,
    following: np.ndarray,
    exists: np.ndarray,
    learn: np.ndarray | None,
) -> Float32[np.ndarray, "n"]:
    """1 where a token's target exists and is learned.

    Args:
        source: where each token of the rows lies among all tokens.
        last: places of the pieces' last tokens in the rows.
        following: where the targets of these lie among all tokens.
        exists: whether they do.
        learn: as of :func:`assemble`.
    """
    mask = np.zeros(len(source), np.float32)
    if learn is None:
        mask[...] = 1.0
        mask[last] = exists
    else:
        mask[:-1] = learn.take(source[1:], mode="clip")
        mask[last] = learn[following] * exists
    return mask


def empty(rows: int, row_tokens: int) -> Batch:
    """Rows that hold nothing but padding."""
    shape = (rows, row_tokens)
    names = ("tokens", "targets", "segment_ids", "positions")
    made = {name: np.zeros(shape, np.int32) for name in names}
    return made | {"loss_mask": np.zeros(shape, np.float32)}


def _gaps(edges: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
    """Runs of padding, those that touch joined."""
    gaps = np.flatnonzero(counts[::2]) * 2
    return list(zip(edges[gaps].tolist(), edges[gaps + 1].tolist(), strict=True))
