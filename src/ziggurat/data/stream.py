"""Streaming: documents tokenised while they are read, shuffled and packed within windows.

An epoch's files come in a keyed order. Their documents fall into windows of ``stream_window``;
each window is tokenised, filtered and packed on its own, and its rows come in an order of their
own. The windows' rows one after the other are the endless list of rows, cut into batches as in
:mod:`ziggurat.data.dataset`, so a batch depends on configuration, seed and step alone. What cannot
be told without reading is where a window starts: the state says it, and resuming reads again no
more than that one window. Records before it in its first file are skipped and not tokenised.
"""

import bisect
import dataclasses
import hashlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.core.protocols import Batch, Tokenizer
from ziggurat.data import conversation, encode, filter, packing
from ziggurat.data.ahead import Ahead
from ziggurat.data.component import fill
from ziggurat.data.config import DataConfig
from ziggurat.data.dataset import DocumentSpan, check_facts, check_rows, digest, order_digest
from ziggurat.data.order import Permutation
from ziggurat.data.pieces import PackingPlan, Pieces, empty
from ziggurat.data.sources import Document, ReadReport, list_files, reading
from ziggurat.data.sources.records import SHOWN_FAULTS, Damaged
from ziggurat.data.store import TokenStore

PLACES = 4096
"""Window starts that are remembered; of older ones every second is forgotten."""


@dataclasses.dataclass(frozen=True, order=True)
class WindowPlace:
    """Position in the sources where a window starts."""

    row: int
    """Rows before it, over all epochs."""
    epoch: int
    window: int
    """Number of the window in the epoch."""
    file: int
    """Place of its first file in the epoch's order of files."""
    record: int
    """Records of that file that come before it."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Documents in memory, and how they fill rows."""

    store: TokenStore
    numbers: np.ndarray
    """Documents that the filter lets through."""
    plan: PackingPlan | None
    """None if it lets none through."""

    @property
    def rows(self) -> int:
        return 0 if self.plan is None else self.plan.rows

    def pieces(self, first: int, stop: int) -> Pieces:
        assert self.plan is not None
        found = self.plan.pieces(0, first, stop)
        return dataclasses.replace(found, document=self.numbers[found.document])


_Part = tuple[Window, Pieces, int]
"""A window, what stands in some of its rows, and how many rows these are."""


class StreamedDataset:
    """Batches of rows from documents that are tokenised on the fly.

    Implements :class:`ziggurat.core.protocols.BatchSource`. Every host reads every document and
    makes its own rows of each batch. Batches are made fastest in order: :meth:`batch` and
    :meth:`state` resume from the nearest window start that is known.

    Args:
        config: the run file's ``[data]`` with ``tokenize = "stream"``.
        tokenizer: with eos and a ``digest``.
        seed: the run's seed.

    Raises:
        DataError: a source has no files, or the tokenizer no eos.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, seed: int):
        self.config, self.seed, self.split = config, seed, "train"
        self._encoder = encode.DocumentEncoder(tokenizer)
        self._files = [(s, file) for s in config.sources for file in list_files(s)]
        # names below each source's own path, which may lie anywhere
        files = [[f.name.removeprefix(s.path), f.size] for s, f in self._files]
        decided = conversation.decided_by(config.sources, tokenizer)
        self._content = digest([getattr(tokenizer, "digest", ""), *decided, *files])
        self._places = [WindowPlace(0, 0, 0, 0, 0)]
        self._lock = threading.Lock()
        self._read_report = ReadReport()
        self._filtered: dict[str, int] = {}
        self._tokens = self._rows = 0

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
        """Number of ids of the tokenizer."""
        return self._encoder.tokenizer.vocab_size

    @property
    def steps(self) -> None:
        """Number of steps that the data lasts: ``None``, since a stream's rows are counted only by
        reading them."""
        return None

    @property
    def steps_per_epoch(self) -> None:
        """Number of steps in an epoch: ``None``, since a stream's rows are counted only by reading
        them."""
        return None

    @property
    def padding(self) -> float:
        """Share of the rows made so far that holds no token."""
        return 1.0 - self._tokens / max(1, self._rows * self.sequence_length)

    @property
    def report(self) -> JsonMapping:
        """Findings of reading so far, in this process; records that were read twice count twice."""
        counts = {"filtered": dict(self._filtered), "rows": self._rows, "tokens": self._tokens}
        return dataclasses.asdict(self._read_report) | counts | {"padding": self.padding}

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Rows ``rows`` (default all) of the global batch of step ``step``.

        Raises:
            DataError: the data ends before ``step``, ``rows`` is not within the batch, or a source
                is damaged.
        """
        first, stop = check_rows(rows, self.batch_size)
        return self._filled(self._of(step, first, stop), stop - first)

    def documents(self, step: int, rows: slice | None = None) -> list[list[DocumentSpan]]:
        """For each row of a step's batch, the pieces of documents it holds, from left to right."""
        first, stop = check_rows(rows, self.batch_size)
        held: list[list[DocumentSpan]] = []
        for window, pieces, count in self._of(step, first, stop):
            lists: list[list[DocumentSpan]] = [[] for _ in range(count)]
            columns = (pieces.row, pieces.document, pieces.start, pieces.length)
            for row, number, start, length in zip(*(c.tolist() for c in columns), strict=True):
                lists[row].append(DocumentSpan("", *window.store.identity(number), start, length))
            held += lists
        return held + [[] for _ in range(stop - first - len(held))]

    def iterate(self, start: int, rows: slice | None = None) -> Iterator[Batch]:
        """The batches from step ``start`` on, made ahead in a thread, until the data ends.

        Raises:
            DataError: as :meth:`batch`.
        """
        first, stop = check_rows(rows, self.batch_size)
        steps = self._steps(start, first, stop)
        made = (self._filled(parts, stop - first) for parts in steps)
        return Ahead(made, self.config.prefetch) if self.config.prefetch else made

    def state(self, step: int) -> JsonObject:
        """State that a checkpoint stores so that step ``step`` comes next.

        It is the start of the window that holds the step's first row, known without reading for
        steps that :meth:`iterate` has reached.
        """
        row = step * self.batch_size
        place = self._nearest(row)
        with self._lock:
            last = self._places[-1]
        if place.row < row and place == last:
            for _, _, following in self._windows(place):
                if following.row >= row:
                    break
            place = self._nearest(row)
        if place.row == row:
            # Windows without a row, and the end of an epoch, start there too: take the first.
            with self._lock:
                spot = bisect.bisect_left(self._places, row, key=lambda place: place.row)
                place = self._places[spot]
        return {
            "step": step,
            **dataclasses.asdict(place),
            "name": self._file(place.epoch, place.file)[1].name,
        } | self._facts()

    def check_state(self, state: JsonMapping) -> int:
        """Compare a stored state with this data and resume from its window; returns its step.

        Raises:
            DataError: the data or a setting that decides batches is another than it was; the text
                names each.
        """
        step = check_facts(state, self._facts())
        names = [field.name for field in dataclasses.fields(WindowPlace)]
        place = WindowPlace(**{name: int(state[name]) for name in names})
        self._remember(place)
        return step

    def _facts(self) -> JsonObject:
        return {
            "split": self.split,
            "seed": self.seed,
            "content": self._content,
            "sequence_length": self.sequence_length,
            "batch_size": self.batch_size,
            "files": len(self._files),
            "bytes": sum(file.size for _, file in self._files),
            "stream_window": self.config.stream_window,
            "order": order_digest(self.config),
        }

    def _of(self, step: int, first: int, stop: int) -> list[_Part]:
        for parts in self._steps(step, first, stop):
            return parts
        raise DataError(
            f"step {step}",
            found=f"data for fewer steps ({self.config.epochs} epochs)",
            fix="raise data.epochs, or leave it out to train without end",
        )

    def _steps(self, start: int, first: int, stop: int) -> Iterator[list[_Part]]:
        """For each step from ``start`` on, what stands in rows ``first`` to ``stop`` of it."""
        step, parts, last = start, [], 0
        for place, window, following in self._windows(self._nearest(start * self.batch_size)):
            last = following.row
            while True:
                low, high = step * self.batch_size + first, step * self.batch_size + stop
                begin, end = max(low, place.row), min(high, last)
                if begin < end:
                    inside = begin - place.row, end - place.row
                    parts.append((window, window.pieces(*inside), end - begin))
                if last < (step + 1) * self.batch_size:
                    break
                yield parts
                step, parts = step + 1, []
        if last > step * self.batch_size:
            yield parts

    def _filled(self, parts: list[_Part], rows: int) -> Batch:
        blocks = [fill(w.store, pieces, count, self.config) for w, pieces, count in parts]
        made = sum(count for *_, count in parts)
        if made < rows:
            blocks.append(empty(rows - made, self.sequence_length))
        if len(blocks) == 1:
            return blocks[0]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _windows(self, place: WindowPlace) -> Iterator[tuple[WindowPlace, Window, WindowPlace]]:
        """Windows from a start on, each with its own start and that of the next."""
        while self.config.epochs is None or place.epoch < self.config.epochs:
            documents, before = self._documents(place), place
            while chunk := list(itertools.islice(documents, self.config.stream_window)):
                window = self._window(place, [document for _, document in chunk])
                file, document = chunk[-1]
                following = WindowPlace(
                    place.row + window.rows, place.epoch, place.window + 1, file, document.record
                )
                self._remember(following)
                yield place, window, following
                place = following
            if before.file == before.record == 0 and place.row == before.row:
                raise DataError(
                    "corpus " + ", ".join(source.path for source in self.config.sources),
                    found=f"no document that the filter lets through, {self.report}",
                    expected="at least one",
                    fix="check the sources, or loosen data.filter",
                )
            place = WindowPlace(place.row, place.epoch + 1, 0, 0, 0)
            self._remember(place)

    def _documents(self, place: WindowPlace) -> Iterator[tuple[int, Document]]:
        """The rest of an epoch's documents, each with the place of its file."""
        report = self._read_report
        for number in range(place.file, len(self._files)):
            source, file = self._file(place.epoch, number)
            passed = place.record if number == place.file else 0
            for count, record in reading.records(source, reading.Piece(file)):
                if count <= passed:
                    continue
                document = record
                if isinstance(record, Document):
                    document = self._encoder.rendered(record)
                if isinstance(document, Damaged):
                    if source.on_error == "raise":
                        raise document.error()
                    report.skipped += 1
                    if len(report.faults) < SHOWN_FAULTS:
                        report.faults.append(str(document.error()))
                elif isinstance(document, Document):
                    report.documents += 1
                    yield number, document
                elif document is None:
                    report.empty += 1

    def _file(self, epoch: int, number: int) -> Any:
        """The source and file at a place of the epoch's order."""
        if self.config.shuffle:
            order = Permutation(len(self._files), self.seed, epoch, "files")
            number = int(order(np.array([number], np.int64))[0])
        return self._files[number]

    def _window(self, place: WindowPlace, documents: list[Document]) -> Window:
        made = [one for chunk in encode.chunks(documents) for one in self._encoder.encoded(chunk)]
        offsets = np.cumsum([0, *(len(one.ids) for one in made)], dtype=np.int64)
        learn = None
        if any(one.learned is not None for one in made):
            whole = [
                np.ones(len(o.ids), np.uint8) if o.learned is None else o.learned for o in made
            ]
            learn = np.concatenate(whole)
        report, across = self._read_report, sum(one.straddles for one in made)
        if across and not report.straddling:
            reading.warn_of_straddling(across, len(made))
        report.straddling += across
        names = {name: n for n, name in enumerate(dict.fromkeys(d.file for d in documents))}
        store = TokenStore(
            path=Path(),
            meta={"files": list(names)},
            tokens=np.concatenate([one.ids for one in made]),
            offsets=offsets,
            files=np.array([names[document.file] for document in documents], np.uint32),
            records=np.array([document.record for document in documents], np.int64),
            identities=np.array([document.identity for document in documents], np.uint64),
            learn=learn,
        )
        against = filter.left_out(store, self.config.filter)
        for rule, mask in against.items():
            self._filtered[rule] = self._filtered.get(rule, 0) + int(mask.sum())
        out = np.any([np.zeros(len(store), bool), *against.values()], axis=0)
        numbers = np.flatnonzero(~out)
        plan = None
        if len(numbers):
            key = f"{self.seed}\0{place.epoch}\0{place.window}".encode()
            seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
            lengths, size = np.diff(offsets)[numbers], self.sequence_length
            plan = packing.plan(self.config.packing, lengths, size, seed, self.config.shuffle)
            self._tokens, self._rows = self._tokens + plan.tokens, self._rows + plan.rows
        return Window(store, numbers, plan)

    def _nearest(self, row: int) -> WindowPlace:
        """The last window start that is known and not after ``row``."""
        with self._lock:
            last = bisect.bisect_right(self._places, row, key=lambda place: place.row)
            return self._places[last - 1]

    def _remember(self, place: WindowPlace) -> None:
        with self._lock:
            spot = bisect.bisect_left(self._places, place)
            if spot == len(self._places) or self._places[spot] != place:
                self._places.insert(spot, place)
            if len(self._places) > PLACES:
                half = PLACES // 2
                self._places = self._places[:half:2] + self._places[half:]
