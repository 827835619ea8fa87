"""The dataset: rows ``[s b, (s + 1) b)`` of one endless list of rows are the batch of step s.

Each row of the list comes from one component; which one, and which of the component's own rows,
follows from the mixture by division (:mod:`ziggurat.data.mixture`). A component's rows are its
epochs one after the other, and follow from document lengths, packing and a keyed order. So a batch
depends on configuration, seed and step, and not on how many hosts ask for it, in which order, or
after how many restarts; nothing is replayed to resume.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ziggurat.core import config as config_
from ziggurat.core.errors import DataError
from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.core.protocols import Batch
from ziggurat.data import changes
from ziggurat.data.ahead import Ahead
from ziggurat.data.component import Component
from ziggurat.data.config import DataConfig
from ziggurat.data.filter import Split
from ziggurat.data.mixture import Schedule
from ziggurat.data.pieces import Pieces, empty

_COUNTED = ("documents", "empty", "skipped", "straddling", "used", "duplicates")
_COUNTED += ("rows", "tokens", "cut")


@dataclasses.dataclass(frozen=True)
class DocumentSpan:
    """A piece of a document in a row."""

    component: str
    """Name of its sources in the mixture; empty without one."""
    file: str
    """The file, named as the run file names it."""
    record: int
    """Line, row, or 1; see :class:`ziggurat.data.sources.Document`."""
    start: int
    """First token of the piece, counted in the document."""
    length: int
    """Tokens."""


class PackedDataset:
    """Batches of packed rows as a function of the step.

    Implements :class:`ziggurat.core.protocols.BatchSource`. Every document of a component stands in
    each of its epochs exactly once (under packing ``none`` only its first ``sequence_length``
    tokens). A batch may hold rows of two epochs; after the end of the data the last batch is filled
    with empty rows, whose loss mask is 0. A pickled dataset opens its files again.

    Args:
        config: the run file's ``[data]``.
        components: what rows come from, in the order of the sources.
        seed: the run's seed.
        split: which side of the held-out line. ``eval`` is one epoch of each component, mixed in
            proportion to their rows whatever the mixture for training is.
    """

    def __init__(
        self,
        config: DataConfig,
        components: Sequence[Component],
        seed: int,
        split: Split = "train",
    ):
        self.config, self.seed, self.split = config, seed, split
        self.components = tuple(components)
        self._schedule = _schedule(config, self.components, split)

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
        return self.components[0].store.meta["vocab_size"]

    @property
    def documents_per_epoch(self) -> int:
        """Documents in this split, over all components."""
        return sum(part.selection.documents for part in self.components)

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold each component once."""
        return sum(part.rows for part in self.components)

    @property
    def steps_per_epoch(self) -> int:
        """Steps with as many rows as hold each component once, rounded up."""
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def steps(self) -> int | None:
        """Steps until the data ends; ``None`` if it never ends."""
        end = self._schedule.end
        return None if end is None else -(-end // self.batch_size)

    @property
    def padding(self) -> float:
        """Share of the rows that hold each component once that holds no token."""
        tokens = sum(part.tokens for part in self.components)
        return 1.0 - tokens / (self.rows_per_epoch * self.sequence_length)

    @property
    def report(self) -> JsonMapping:
        """Sum of :attr:`ziggurat.data.component.Component.report` over the components.

        With a mixture it has ``components`` too: the report of each, by name.
        """
        reports = {part.name: part.report for part in self.components}
        summed: JsonObject = {n: sum(r[n] for r in reports.values()) for n in _COUNTED}
        summed["faults"] = [fault for r in reports.values() for fault in r["faults"]]
        rules = dict.fromkeys(rule for r in reports.values() for rule in r["filtered"])
        summed["filtered"] = {
            rule: sum(r["filtered"][rule] for r in reports.values()) for rule in rules
        }
        summed["padding"] = self.padding
        return summed | ({} if self.config.mixture is None else {"components": reports})

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Rows ``rows`` (default all) of the global batch of step ``step``.

        Raises:
            DataError: the data ends before ``step``, or ``rows`` is not within the batch.
        """
        first, stop = check_rows(rows, self.batch_size)
        parts = self._parts(step, first, stop)
        if len(parts) == 1:
            component, _, pieces = parts[0]
            return component.fill(pieces, stop - first)
        filled = [(places, part.fill(pieces, len(places))) for part, places, pieces in parts]
        if not filled:
            return empty(stop - first, self.sequence_length)
        shape = (stop - first, self.sequence_length)
        batch = {name: np.zeros(shape, values.dtype) for name, values in filled[0][1].items()}
        for places, block in filled:
            for name, values in block.items():
                batch[name][places] = values
        return batch

    def documents(self, step: int, rows: slice | None = None) -> list[list[DocumentSpan]]:
        """For each row of a step's batch, the pieces of documents it holds, from left to right."""
        first, stop = check_rows(rows, self.batch_size)
        held: list[list[DocumentSpan]] = [[] for _ in range(stop - first)]
        for part, places, pieces in self._parts(step, first, stop):
            columns = (places[pieces.row], pieces.document, pieces.start, pieces.length)
            for row, number, start, length in zip(*(c.tolist() for c in columns), strict=True):
                file, record = part.store.identity(number)
                held[row].append(DocumentSpan(part.name, file, record, start, length))
        return held

    def iterate(self, start: int, rows: slice | None = None) -> Iterator[Batch]:
        """The batches from step ``start`` on, made ahead, until the data ends.

        Raises:
            DataError: as :meth:`batch`.
        """
        check_rows(rows, self.batch_size)
        stop, ahead = self.steps, self.config.prefetch
        if self.config.workers:
            from ziggurat.data import workers

            patience_s, processes = self.config.worker_patience_s, self.config.workers
            return workers.batches(
                *(self, rows, start, stop),
                processes=processes,
                ahead=max(1, ahead),
                patience_s=patience_s,
            )
        made = self._made(start, stop, rows)
        return Ahead(made, ahead) if ahead else made

    def state(self, step: int) -> JsonObject:
        """State that a checkpoint stores so that step ``step`` comes next.

        ``taken`` holds for each component the rows it has given in all, its whole epochs, and the
        rows of the epoch under way.
        """
        taken = self._taken(step)
        epoch = min(entry["epoch"] for entry in taken.values())
        used = {part.name: part.mark for part in self._used()}
        return {"step": step, "epoch": epoch, "taken": taken, "used": used} | self._facts()

    def check_state(self, state: JsonMapping) -> int:
        """Compare a stored state with this data; returns its step.

        Documents are compared by content, so their files may lie elsewhere. The mixture may have
        changed if it hands out the same rows up to that step: stages and sources may be added for
        later steps.

        Raises:
            DataError: the data or a setting that decides batches is another than it was; the text
                names each setting, and the files that changed where the cache tells.
        """
        step = check_facts(state, self._facts())
        if "used" in state or state.get("content") != self._whole_content():
            changes.check_used(state.get("used"), self._used())
        taken, before = self._taken(step), state.get("taken", {})
        taken = {name: entry for name, entry in taken.items() if name in before or entry["rows"]}
        if taken != before:
            raise DataError(
                f"mixture up to step {step}",
                found=f"rows {_rows_by_name(taken)}",
                expected=f"{_rows_by_name(before)}, as the checkpoint says",
                fix="keep weights, epochs and earlier stages, and add stages for later steps only",
            )
        return step

    def _taken(self, step: int) -> dict[str, dict[str, int]]:
        counters = self._schedule.counters(step * self.batch_size)
        taken = {}
        for part, rows in zip(self.components, counters, strict=True):
            epoch, row = divmod(rows, part.rows)
            taken[part.name] = {"rows": rows, "epoch": epoch, "row": row}
        return taken

    def _facts(self) -> JsonObject:
        """Settings that decide the batches; what only makes them faster is not in it."""
        return {
            "split": self.split,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "batch_size": self.batch_size,
            "order": order_digest(self.config),
        }

    def _whole_content(self) -> str:
        """The one digest of all components that states held before there was one for each."""
        return digest([[p.name, p.store.content, p.selection.digest] for p in self.components])

    def _used(self) -> list[changes.UsedDocuments]:
        return [
            changes.UsedDocuments(
                part.name,
                part.store,
                digest([part.store.content, part.selection.digest]),
                part.selection.documents,
            )
            for part in self.components
        ]

    def _made(self, start: int, stop: int | None, rows: slice | None) -> Iterator[Batch]:
        step = start
        while stop is None or step < stop:
            yield self.batch(step, rows)
            step += 1

    def _parts(
        self, step: int, first: int, stop: int
    ) -> list[tuple[Component, np.ndarray, Pieces]]:
        """Pieces in rows ``first`` to ``stop`` of step ``step``, with their rows, by component."""
        if step < 0 or (self.steps is not None and step >= self.steps):
            raise DataError(
                f"step {step}",
                found=f"data for {self.steps} steps",
                fix="raise data.epochs or the mixture's, or leave them out to train without end",
            )
        begin, end = step * self.batch_size + first, step * self.batch_size + stop
        if self._schedule.end is not None:
            end = min(end, self._schedule.end)
        if end <= begin:
            return []
        owners, counters = self._schedule.owners(begin, end), self._schedule.counters(begin)
        parts = []
        for number in np.unique(owners).tolist():
            places, taken = np.flatnonzero(owners == number), counters[number]
            part = self.components[number]
            parts.append((part, places, part.pieces(taken, taken + len(places))))
        return parts


def _schedule(config: DataConfig, components: Sequence[Component], split: Split) -> Schedule:
    names, rows = [part.name for part in components], [part.rows for part in components]
    mixture = config.mixture
    if split == "eval" or mixture is None:
        passes = 1 if split == "eval" else config.epochs
        caps = [None if passes is None else passes * count for count in rows]
        shares = [float(count) for count in rows]
        return Schedule(names, [(0, shares)], caps, refuse=False)
    passes = [mixture.epochs.get(name, config.epochs) for name in names]
    caps = [None if p is None else max(1, round(p * n)) for p, n in zip(passes, rows, strict=True)]
    tokens = {part.name: float(part.tokens) for part in components}
    stages = [(0, mixture.shares(mixture.weights or tokens, names))]
    for stage in mixture.schedule:
        stages.append((stage.step * config.batch_size, mixture.shares(stage.weights, names)))
    return Schedule(names, stages, caps, mixture.stop, refuse=bool(mixture.weights))


def _rows_by_name(taken: Mapping[str, Mapping[str, int]] | None) -> str:
    return ", ".join(f"{name} {entry['rows']}" for name, entry in (taken or {}).items()) or "none"


def check_rows(rows: slice | None, batch_size: int) -> tuple[int, int]:
    """Resolve a slice of the batch to its first row and the row after its last.

    Raises:
        DataError: it is not a range within the batch.
    """
    if rows is None:
        return 0, batch_size
    first, stop = rows.start or 0, batch_size if rows.stop is None else rows.stop
    if rows.step not in (None, 1) or not 0 <= first <= stop <= batch_size:
        raise DataError(
            "rows of the batch", found=rows, expected=f"a range within 0 to {batch_size}"
        )
    return first, stop


def check_facts(state: JsonMapping, facts: JsonMapping) -> int:
    """Compare a stored state's facts with the data's; returns the state's step.

    Raises:
        DataError: one of ``facts`` is another than it was.
    """
    changed = [name for name in facts if state.get(name) != facts[name]]
    if changed or not isinstance(state.get("step"), int):
        raise DataError(
            "data of the checkpoint",
            found=", ".join(f"{name} {facts[name]}" for name in changed) or "no step",
            expected=", ".join(f"{name} {state.get(name)}" for name in changed) or "a step",
            fix="resume with the data and settings of that run, or start a new one",
        )
    return state["step"]


def order_digest(config: DataConfig) -> str:
    """Digest of the settings that decide batches, without the mixture, which is stored as a fact of
    its own, and without the bound on positions, which follows from the model."""
    names = ("packing", "positions", "shuffle", "eval_fraction", "filter", "dedup", "tokenize")
    return digest({name: config_.to_plain(getattr(config, name)) for name in names})


def digest(value: Json) -> str:
    """Short digest of JSON."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
