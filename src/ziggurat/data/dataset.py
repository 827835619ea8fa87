"""The dataset: rows ``[s b, (s + 1) b)`` of one endless list of rows are the batch of step s.

The list is the epochs' rows one after the other, and an epoch's rows follow from document lengths,
packing and a keyed order. So a batch depends on configuration, seed and step, and not on how many
hosts ask for it, in which order, or after how many restarts; nothing is replayed to resume.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from ziggurat.core import atomic, config
from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Batch, Tokenizer
from ziggurat.data import packing, store
from ziggurat.data import sources as sources_
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.packing import Concat, Packing, Pieces
from ziggurat.data.sources import Source
from ziggurat.data.store import Progress, TokenStore
from ziggurat.data.tokenizers import (
    ByteTokenizer,
    LoadTokenizer,
    TrainBpe,
    tokenizer,
)

logger = logging.getLogger(__name__)

Split = Literal["train", "eval"]


@config.node
class DataConfig:
    """What a model is trained on."""

    sources: tuple[Source, ...]
    """Where documents come from, read in this order."""
    sequence_length: int
    """Tokens in a row."""
    batch_size: int
    """Rows in the global batch, over all hosts."""
    packing: Packing = dataclasses.field(default_factory=Concat)
    """How documents fill rows."""
    positions: Literal["document", "row"] = "document"
    """Positions count from the start of the document; or start at 0 with each of its pieces, as a
    model with a limited table of positions needs when documents are longer than a row."""
    shuffle: bool = True
    """A new keyed order of documents in every epoch; else the order of the sources."""
    epochs: int | None = None
    """Passes over the documents; without end if not given."""
    eval_fraction: float = 0.0
    """Share of documents held out for evaluation, chosen by a hash of file name and record."""
    workers: int = 0
    """Processes that make batches; 0 makes them in a thread of this one, fast enough for local
    files."""
    prefetch: int = 4
    """Batches made ahead in each process; 0 makes each when it is asked for."""

    def __post_init__(self) -> None:
        config.require(len(self.sources) > 0, "sources", self.sources, "at least one source")
        for key, least in (
            ("sequence_length", 2),
            ("batch_size", 1),
            ("workers", 0),
            ("prefetch", 0),
        ):
            value = getattr(self, key)
            config.require(value >= least, key, value, f"at least {least}")
        config.require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "at least 1")
        held = self.eval_fraction
        config.require(0.0 <= held < 1.0, "eval_fraction", held, "0 or more and below 1")


@dataclasses.dataclass(frozen=True)
class Held:
    """A piece of a document in a row."""

    file: str
    """The file, named as the run file names it."""
    record: int
    """Line, row, or 1; see :class:`ziggurat.data.sources.Document`."""
    start: int
    """First token of the piece, counted in the document."""
    length: int
    """Tokens."""


def build(
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    cache: Path,
    split: Split = "train",
    progress: Progress | None = None,
) -> "PackedDataset":
    """Tokenise what is not in the cache yet, and open one split of the data.

    Args:
        config: the run file's ``[data]``.
        tokenizer: with eos and a ``digest``.
        seed: the run's seed; keys the order.
        cache: directory of token stores.
        split: ``train``, or ``eval`` for the documents held out, once each.
        progress: called with (documents, tokens) done while tokenising.

    Raises:
        DataError: no or damaged data; or no document falls into the split.
    """
    if split == "eval" and config.eval_fraction == 0.0:
        raise DataError(
            "evaluation data",
            found="eval_fraction 0",
            expected="a share",
            fix="set data.eval_fraction",
        )
    tokens = store.tokenise(config.sources, tokenizer, cache, progress)
    return PackedDataset(config, tokens, seed, split)


class PackedDataset:
    """Batches of packed rows as a function of the step.

    Implements :class:`ziggurat.core.protocols.BatchSource`. Every document of the split stands in
    each epoch exactly once (under packing ``none`` only its first ``sequence_length`` tokens). The
    last row that an epoch fills is padded where documents end; a batch may hold rows of two epochs;
    after the last epoch the last batch is filled with empty rows, whose loss mask is 0.

    Args:
        config: the run file's ``[data]``.
        tokens: the token store of its sources.
        seed: the run's seed.
        split: which side of the held-out line; ``eval`` is one epoch long.
    """

    def __init__(self, config: DataConfig, tokens: TokenStore, seed: int, split: Split = "train"):
        self.config, self.store, self.seed, self.split = config, tokens, seed, split
        self._chosen = _choose(tokens, config.eval_fraction, split)
        lengths = _Lengths(tokens, self._chosen)
        self._count = len(lengths)
        self._plan = packing.plan(
            config.packing, lengths, config.sequence_length, seed, config.shuffle
        )
        self._epochs = 1 if split == "eval" else config.epochs

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        return self.config.batch_size

    @property
    def sequence_length(self) -> int:
        """Tokens in a row."""
        return self.config.sequence_length

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer that made the data; a model needs at least as many."""
        return self.store.meta["vocab_size"]

    @property
    def documents_per_epoch(self) -> int:
        """Documents in this split."""
        return self._count

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one epoch, the same in all."""
        return self._plan.rows

    @property
    def steps_per_epoch(self) -> int:
        """Steps that cover one epoch, rounded up."""
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def steps(self) -> int | None:
        """Steps until the data ends; None if they go on forever."""
        if self._epochs is None:
            return None
        return -(-self.rows_per_epoch * self._epochs // self.batch_size)

    @property
    def report(self) -> Mapping[str, Any]:
        """What reading found: ``documents``, ``empty``, ``skipped`` and the first ``faults``."""
        return self.store.meta["report"]

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Rows ``rows`` (default all) of the global batch of step ``step``.

        Raises:
            DataError: the data ends before ``step``, or ``rows`` is not within the batch.
        """
        first, stop = self._rows(rows)
        pieces = self._pieces(step, first, stop)
        documents = self._numbers(pieces)
        begins = self.store.offsets[documents]
        return packing.assemble(
            pieces,
            self.store.tokens,
            begins,
            self.store.offsets[documents + 1] - begins,
            rows=stop - first,
            row_tokens=self.sequence_length,
            positions=self.config.positions,
        )

    def documents(self, step: int, rows: slice | None = None) -> list[list[Held]]:
        """For each row of a step's batch, the pieces of documents it holds, from left to right."""
        first, stop = self._rows(rows)
        pieces = self._pieces(step, first, stop)
        held: list[list[Held]] = [[] for _ in range(stop - first)]
        columns = (pieces.row, self._numbers(pieces), pieces.start, pieces.length)
        for row, number, start, length in zip(*(c.tolist() for c in columns), strict=True):
            held[row].append(Held(*self.store.identity(number), start, length))
        return held

    def iterate(self, start: int, rows: slice | None = None) -> Iterator[Batch]:
        """The batches from step ``start`` on, made ahead by Grain, until the data ends.

        Raises:
            DataError: as :meth:`batch`.
        """
        import grain

        self._rows(rows)
        steps = self.steps
        dataset = grain.MapDataset.range(start, 1 << 62 if steps is None else max(start, steps))
        # More than one thread only makes them wait for each other: rows are copied from memory.
        options = grain.ReadOptions(
            num_threads=min(1, self.config.prefetch), prefetch_buffer_size=self.config.prefetch
        )
        batches = dataset.map(_Rows(self, rows)).to_iter_dataset(options)
        if self.config.workers:
            batches = _in_processes(batches, self.config)
        return iter(batches)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint stores so that step ``step`` comes next."""
        return {
            "step": step,
            "epoch": step * self.batch_size // self.rows_per_epoch,
        } | self._facts()

    def check_state(self, state: Mapping[str, Any]) -> int:
        """Compare a stored state with this data; returns its step.

        Raises:
            DataError: the data or a setting that decides batches is another than it was; the text
                names each.
        """
        facts = self._facts()
        changed = [name for name in facts if state.get(name) != facts[name]]
        if changed or not isinstance(state.get("step"), int):
            raise DataError(
                "data of the checkpoint",
                found=", ".join(f"{name} {facts[name]}" for name in changed) or "no step",
                expected=", ".join(f"{name} {state.get(name)}" for name in changed) or "a step",
                fix="resume with the data and settings of that run, or start a new one",
            )
        return state["step"]

    def _facts(self) -> dict[str, Any]:
        """All that decides the batches; what only makes them faster is not in it."""
        deciding = {
            "packing": config.to_plain(self.config.packing),
            "positions": self.config.positions,
            "shuffle": self.config.shuffle,
            "eval_fraction": self.config.eval_fraction,
        }
        order = hashlib.blake2b(json.dumps(deciding, sort_keys=True).encode(), digest_size=8)
        return {
            "split": self.split,
            "seed": self.seed,
            "documents": self._count,
            "content": self.store.content,
            "sequence_length": self.sequence_length,
            "batch_size": self.batch_size,
            "order": order.hexdigest(),
        }

    def _rows(self, rows: slice | None) -> tuple[int, int]:
        if rows is None:
            return 0, self.batch_size
        first, stop = rows.start or 0, self.batch_size if rows.stop is None else rows.stop
        if rows.step not in (None, 1) or not 0 <= first <= stop <= self.batch_size:
            raise DataError(
                "rows of the batch", found=rows, expected=f"a range within 0 to {self.batch_size}"
            )
        return first, stop

    def _pieces(self, step: int, first: int, stop: int) -> Pieces:
        """What stands in rows ``first`` to ``stop`` of step ``step``, over epoch borders."""
        if step < 0 or (self.steps is not None and step >= self.steps):
            raise DataError(
                f"step {step}",
                found=f"data for {self.steps} steps ({self._epochs} epochs)",
                fix="raise data.epochs, or leave it out to go on forever",
            )
        size, parts = self.rows_per_epoch, []
        row, end = step * self.batch_size + first, step * self.batch_size + stop
        if self._epochs is not None:
            end = min(end, size * self._epochs)
        begin = row
        while row < end:
            epoch, inside = divmod(row, size)
            until = min(inside + end - row, size)
            parts.append((row - begin, self._plan.pieces(epoch, inside, until)))
            row += until - inside
        return Pieces.join(parts)

    def _numbers(self, pieces: Pieces) -> Int64[np.ndarray, "p"]:
        """Document numbers in the store."""
        return pieces.document if self._chosen is None else self._chosen[pieces.document]


class _Lengths:
    """Lengths of a split's documents, read from the store's offsets."""

    def __init__(self, tokens: TokenStore, chosen: np.ndarray | None):
        # The store, not its arrays: a worker process then maps the files instead of copying them.
        self._store, self._chosen = tokens, chosen

    def __len__(self) -> int:
        return len(self._store) if self._chosen is None else len(self._chosen)

    def __getitem__(self, documents: np.ndarray) -> np.ndarray:
        numbers = documents if self._chosen is None else self._chosen[documents]
        return self._store.offsets[numbers + 1] - self._store.offsets[numbers]


def _choose(tokens: TokenStore, fraction: float, split: Split) -> np.ndarray | None:
    """Numbers of the split's documents; None means all, without a table."""
    if fraction == 0.0 and split == "train":
        return None
    chosen = np.flatnonzero(tokens.held_out(fraction) == (split == "eval"))
    if not len(chosen):
        raise DataError(
            f"{split} split",
            found=f"none of {len(tokens)} documents at eval_fraction {fraction}",
            expected="at least one document",
            fix="raise eval_fraction or add documents"
            if split == "eval"
            else "lower eval_fraction or add documents",
        )
    return chosen


@dataclasses.dataclass(frozen=True)
class _Rows:
    """One host's batch of a step, as Grain maps it."""

    dataset: PackedDataset
    rows: slice | None

    def __call__(self, step: int) -> Batch:
        return self.dataset.batch(int(step), self.rows)


def _in_processes(batches: Any, config: DataConfig) -> Any:
    """Let processes make the batches; they open the store's files again and share nothing else."""
    import grain
    from absl import flags

    # Grain reads absl's flags in its workers, which needs them parsed; ours come from the run file.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return batches.mp_prefetch(
        grain.MultiprocessingOptions(
            num_workers=config.workers, per_worker_buffer_size=max(1, config.prefetch)
        )
    )


def tokenizer_for(
    node: TrainBpe | LoadTokenizer | ByteTokenizer, data: DataConfig, cache: Path
) -> HuggingFaceTokenizer:
    """The tokenizer a run asks for; one trained on the run's documents is kept in the cache.

    Training reads the documents of the ``train`` split only. The kept one is used again as long as
    its settings and the sources' settings, names, sizes and times are the same.

    Raises:
        DataError: as :func:`ziggurat.data.tokenizers.tokenizer`.
    """
    if not isinstance(node, TrainBpe):
        return tokenizer(node)
    parts = [config.to_plain(node), data.eval_fraction, sources_.signature(data.sources)]
    key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
    path = cache / f"tokenizer-{key}"
    if not path.exists():
        made = tokenizer(node, documents(data, "train"))
        try:
            with atomic.new_directory(path) as directory:
                made.save(directory)
        except OSError:
            if not path.exists():
                raise
    return HuggingFaceTokenizer.load(path)


def documents(config: DataConfig, split: Split | None = None) -> Iterator[str]:
    """The texts of the data, for training a tokenizer; only those of ``split`` if given.

    >>> from ziggurat.data.sources import TextFiles
    >>> source = TextFiles(path="{stdlib}/json", glob="*.py")
    >>> len(list(documents(DataConfig(sources=(source,), sequence_length=8, batch_size=1))))
    5
    """
    for document in sources_.read(config.sources):
        if split is None or store.is_held_out(document, config.eval_fraction) == (split == "eval"):
            yield document.text
