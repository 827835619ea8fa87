"""One token store, the documents of it that are used, and how they fill rows."""

import hashlib
import json
from pathlib import Path

import numpy as np

from ziggurat.core import config as config_
from ziggurat.core.json_types import JsonMapping
from ziggurat.core.protocols import Batch
from ziggurat.data import bins, packing
from ziggurat.data.config import DataConfig
from ziggurat.data.filter import Selection
from ziggurat.data.pieces import POSITION_LIMIT, Pieces, assemble
from ziggurat.data.store import TokenStore


class Component:
    """The endless list of rows of one token store: its epochs one after the other.

    Args:
        name: of its sources; empty if there is no mixture.
        store: the documents.
        selection: those of them that are used.
        config: the run file's ``[data]``.
        seed: the run's seed.
        cache: where packed rows are kept.
    """

    def __init__(
        self,
        name: str,
        store: TokenStore,
        selection: Selection,
        config: DataConfig,
        seed: int,
        cache: Path,
    ):
        self.name, self.store, self.selection = name, store, selection
        self._row_tokens = config.sequence_length
        self._config = config
        lengths = _Lengths(store, selection)
        # Each component has its own order, also where two hold the same documents.
        own = seed if not name else _seed(seed, name)
        kept = cache / f"rows-{_key(store, selection, config)}"
        self._plan = packing.plan(
            config.packing, lengths, self._row_tokens, own, config.shuffle, kept
        )
        self._cut = (store.meta["tokens"] if selection.numbers is None else lengths.total()) - (
            self._plan.tokens
        )

    @property
    def rows(self) -> int:
        """Rows of one epoch, the same in all."""
        return self._plan.rows

    @property
    def tokens(self) -> int:
        """Tokens in the rows of one epoch."""
        return self._plan.tokens

    @property
    def padding(self) -> float:
        """Share of an epoch's rows that holds no token."""
        return packing.padding(self._plan, self._row_tokens)

    @property
    def report(self) -> JsonMapping:
        """Counts of documents read and left out, and how full the rows are.

        ``documents`` read, ``empty``, ``skipped`` and the first ``faults``, those ``straddling``
        (a token is a part of prompt and answer); ``used`` documents,
        those ``filtered`` out by each rule and the ``duplicates``; ``rows`` of an epoch, ``tokens``
        in them, tokens ``cut`` off and the share of ``padding``.
        """
        return {
            **self.store.meta["report"],
            "used": self.selection.documents,
            "filtered": dict(self.selection.filtered),
            "duplicates": self.selection.duplicates,
            "rows": self.rows,
            "tokens": self.tokens,
            "cut": self._cut,
            "padding": self.padding,
        }

    def pieces(self, first: int, stop: int) -> Pieces:
        """Pieces in rows ``first`` to ``stop`` of the endless list; ``document`` counts in the
        store."""
        parts, row = [], first
        while row < stop:
            epoch, inside = divmod(row, self.rows)
            until = min(inside + stop - row, self.rows)
            parts.append((row - first, self._plan.pieces(epoch, inside, until)))
            row += until - inside
        pieces = Pieces.join(parts)
        if self.selection.numbers is None:
            return pieces
        numbers = self.selection.numbers[pieces.document]
        return Pieces(pieces.row, pieces.column, numbers, pieces.start, pieces.length)

    def fill(self, pieces: Pieces, rows: int) -> Batch:
        """Fill rows with the tokens of ``pieces``."""
        return fill(self.store, pieces, rows, self._config)


def fill(store: TokenStore, pieces: Pieces, rows: int, config: DataConfig) -> Batch:
    """Fill rows with pieces of a token store's documents, see
    :func:`ziggurat.data.pieces.assemble`."""
    begins = store.offsets[pieces.document]
    return assemble(
        pieces,
        store.tokens,
        begins,
        store.offsets[pieces.document + 1] - begins,
        rows=rows,
        row_tokens=config.sequence_length,
        positions=config.positions,
        position_limit=config.position_limit or POSITION_LIMIT,
        learn=store.learn,
    )


class _Lengths:
    """Lengths of the documents used, read from the store's offsets."""

    def __init__(self, store: TokenStore, selection: Selection):
        # Not the arrays: another process then maps the files instead of copying them.
        self._store, self._selection = store, selection

    def __len__(self) -> int:
        return self._selection.documents

    def __getitem__(self, documents: np.ndarray) -> np.ndarray:
        numbers = self._selection.numbers
        numbers = documents if numbers is None else numbers[documents]
        return self._store.offsets[numbers + 1] - self._store.offsets[numbers]

    def total(self) -> int:
        """Tokens of all documents."""
        return int(self[np.arange(len(self))].sum())


def _seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _key(store: TokenStore, selection: Selection, config: DataConfig) -> str:
    """A digest of all that decides packed rows: neither the seed nor the epoch does."""
    parts = [bins.FORMAT, store.content, selection.digest, config.sequence_length]
    parts += [config_.to_plain(config.packing), config.shuffle]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
