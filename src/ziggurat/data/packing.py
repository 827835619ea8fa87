"""Packing: which pieces of which documents stand in which row, from document lengths alone.

A plan answers for any range of rows of any epoch without walking through the rows before. Every
plan has the same number of rows in each epoch, so row numbers run on through the epochs by
division.

* :class:`~ziggurat.data.concat.ConcatPlan` lays the documents end to end in the epoch's order and
  cuts every T tokens. No token of padding but at the end of the epoch; most rows start and end
  inside a document.
* :class:`~ziggurat.data.bins.BinsPlan` puts whole documents together so that rows are nearly full;
  only documents longer than T are cut.
* :class:`SinglePlan` gives each document its own row, cut at T.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Discriminator

from ziggurat.core import config
from ziggurat.data.bins import BinsPlan
from ziggurat.data.concat import ConcatPlan
from ziggurat.data.order import Permutation
from ziggurat.data.pieces import Lengths, PackingPlan, Pieces


@config.node
class Concat:
    """Packing: documents end to end, cut every ``sequence_length`` tokens."""

    kind: Literal["concat"] = "concat"


class _Window:
    def __post_init__(self) -> None:
        window = self.window  # pyright: ignore[reportAttributeAccessIssue]
        config.require(window > 0, "window", window, "a positive number of documents")


@config.node
class FirstFit(_Window):
    """Packing: whole documents in nearly full rows, longest first, each into the first row with
    room."""

    kind: Literal["first_fit"] = "first_fit"
    window: int = 1024
    """Documents considered together; more fill rows better."""


@config.node
class BestFit(_Window):
    """Packing: whole documents in nearly full rows, longest first, each into the row it fills
    best."""

    kind: Literal["best_fit"] = "best_fit"
    window: int = 1024
    """Documents considered together; more fill rows better."""


@config.node
class Single:
    """Packing: one document a row, padded, or cut after ``sequence_length`` tokens."""

    kind: Literal["none"] = "none"


Packing = Annotated[Concat | FirstFit | BestFit | Single, Discriminator("kind")]


def plan(
    packing: Concat | FirstFit | BestFit | Single,
    lengths: Lengths,
    row_tokens: int,
    seed: int,
    shuffle: bool,
    kept: Path | None = None,
) -> PackingPlan:
    """Build the packing plan of a configuration.

    Args:
        packing: how documents fill rows.
        lengths: of all documents, each at least 1.
        row_tokens: T.
        seed: keys the orders.
        shuffle: another order each epoch, else that of the documents.
        kept: a directory for what is too much for memory, as :class:`~ziggurat.data.bins.BinsPlan`
            has it.

    >>> made = plan(Single(), np.array([3, 5]), row_tokens=4, seed=0, shuffle=False)
    >>> made.rows, made.tokens, padding(made, 4)
    (2, 7, 0.125)
    """
    if isinstance(packing, Concat):
        return ConcatPlan(lengths, row_tokens, seed, shuffle)
    if isinstance(packing, Single):
        return SinglePlan(lengths, row_tokens, seed, shuffle)
    return BinsPlan(packing.kind, lengths, row_tokens, seed, shuffle, packing.window, kept)


def padding(plan: PackingPlan, row_tokens: int) -> float:
    """Share of an epoch's rows that holds no token."""
    return 1.0 - plan.tokens / (plan.rows * row_tokens)


class SinglePlan:
    """One document a row; what is longer than T is cut off and never seen."""

    def __init__(self, lengths: Lengths, row_tokens: int, seed: int, shuffle: bool):
        self._lengths, self._row_tokens = lengths, row_tokens
        self._seed, self._shuffle = seed, shuffle
        self._tokens, chunk = 0, 1 << 20
        for first in range(0, len(lengths), chunk):
            documents = np.arange(first, min(first + chunk, len(lengths)))
            self._tokens += int(np.minimum(lengths[documents], row_tokens).sum(dtype=np.int64))

    @property
    def rows(self) -> int:
        return len(self._lengths)

    @property
    def tokens(self) -> int:
        return self._tokens

    def pieces(self, epoch: int, first: int, stop: int) -> Pieces:
        documents = np.arange(first, stop, dtype=np.int64)
        if self._shuffle:
            documents = Permutation(self.rows, self._seed, epoch, "documents")(documents)
        row, zero = np.arange(stop - first), np.zeros(stop - first, np.int64)
        length = np.minimum(self._lengths[documents].astype(np.int64), self._row_tokens)
        return Pieces(row, zero, documents, zero, length)
