"""``ziggurat data trace``: which documents a step saw, and which steps saw a document."""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from json import dumps
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ziggurat.cli import console, data_run
from ziggurat.core.errors import ConfigError, DataError, did_you_mean
from ziggurat.core.json_types import JsonObject
from ziggurat.data import DocumentSpan, PackedDataset
from ziggurat.data.component import Component
from ziggurat.data.opening import Dataset

_BLOCK = 4096
"""Rows looked through at once."""
_NEVER = 1 << 40
"""No run has as many steps."""


def trace(
    run: Path,
    /,
    step: int | None = None,
    document: str | None = None,
    epoch: int = 0,
    json: bool = False,
    overrides: tuple[str, ...] = (),
) -> int:
    """Say exactly which documents a step saw; or in which steps a document occurs.

    A run's directory is compared with its newest checkpoint first: the answer is about the data the
    run was trained on, or there is none.

    Args:
        run: run file, or a run's directory.
        step: list the documents of this step, row by row.
        document: FILE or FILE:RECORD, as the run file names it or the end of that name; list the
            steps in which it occurs.
        epoch: in which pass over the documents of its component to look for it.
        json: print JSON.
    """
    if (step is None) == (document is None):
        raise ConfigError(
            "data trace",
            found="neither --step nor --document" if step is None else "--step and --document",
            expected="one of them",
        )
    for name, value in (("--step", step), ("--epoch", epoch)):
        if value is not None and value < 0:
            raise ConfigError(name, found=value, expected="0 or more")
    source = data_run.load(run, overrides)
    if document is None:
        assert step is not None
        dataset = data_run.open_data(source, data_run.tokenizer_of(source))
        _require_unchanged(source, dataset, run)
        what, found = {"step": step}, _of_step(dataset, step)
        nothing = f"step {step} has only empty rows"
    else:
        dataset = data_run.open_stores(source, "trace --document")
        _require_unchanged(source, dataset, run)
        what, found = {"document": document, "epoch": epoch}, _of(dataset, document, epoch)
        nothing = "" if found else _why_nothing(dataset, document, epoch)
    out = console.output()
    if json:
        sys.stdout.write(dumps({**what, "pieces": found}) + "\n")
    elif not found:
        out.print(nothing, markup=False, soft_wrap=True)
    else:
        several = len(source.run.data.components) > 1
        table = Table(box=None, pad_edge=False)
        columns = [name for name in found[0] if name != "component" or several]
        for name in columns:
            table.add_column(name, overflow="fold")
        for entry in found:
            table.add_row(*(Text(str(entry[name])) for name in columns))
        out.print(table)
    return 0


def _require_unchanged(source: data_run.RunSource, dataset: Dataset, run: Path) -> None:
    changed = data_run.check_unchanged(source, dataset)
    if changed:
        raise DataError(
            f"what run {source.run.name} saw cannot be traced, its data has changed",
            found=changed.found,
            expected=changed.expected,
            fix=f"for the data as it is now, name the run file {run / 'run.toml'}",
        )


def _why_nothing(dataset: PackedDataset, document: str, epoch: int) -> str:
    file, record = _find(dataset, document)
    numbers = [(part, _numbers(part, file, record)) for part in dataset.components]
    if not any(len(wanted) for _, wanted in numbers):
        return f"{file} has no document {record}"
    if not any(_is_used(part, wanted) for part, wanted in numbers):
        return f"{document} is in no step: held out, against the filter, or a duplicate"
    return f"{document} is in no step of epoch {epoch}: the data ends before, or packing cuts"


def _is_used(part: Component, wanted: Int64[np.ndarray, "n"]) -> bool:
    chosen = part.selection.numbers
    return bool(len(wanted)) and (chosen is None or bool(np.isin(wanted, chosen).any()))


def _of_step(dataset: Dataset, step: int) -> list[JsonObject]:
    """Every piece of every row of a step."""
    return [
        {"row": row} | dataclasses.asdict(piece)
        for row, pieces in enumerate(dataset.documents(step))
        for piece in pieces
    ]


def _of(dataset: PackedDataset, document: str, epoch: int) -> list[JsonObject]:
    """Every place at which a document stands in one epoch of its component."""
    file, record = _find(dataset, document)
    found = []
    for part in dataset.components:
        wanted = _numbers(part, file, record)
        if not len(wanted):
            continue
        places = _Places(dataset, part.name)
        for row, number, start, length in _hits(part, wanted, epoch):
            where = places.of(row)
            if where is not None:
                held = DocumentSpan(part.name, *part.store.identity(number), start, length)
                found.append({"step": where[0], "row": where[1]} | dataclasses.asdict(held))
    return sorted(found, key=lambda entry: (entry["step"], entry["row"], entry["start"]))


def _find(dataset: PackedDataset, document: str) -> tuple[str, int | None]:
    """The file that is meant, and the record.

    Raises:
        DataError: none or several are.
    """
    files = list(dict.fromkeys(f for part in dataset.components for f in part.store.meta["files"]))
    name, colon, record = document.rpartition(":")
    wanted, number = (name, int(record)) if colon and record.isdigit() else (document, None)
    found = [wanted] if wanted in files else [f for f in files if f.endswith(f"/{wanted}")]
    if len(found) == 1:
        return found[0], number
    raise DataError(
        f"document {document}",
        found=", ".join(found[:3]) if found else "no such file in the data",
        expected="one file of the data, as the run file names it",
        fix="name more of its path" if found else did_you_mean(wanted, files),
    )


def _numbers(part: Component, file: str, record: int | None) -> Int64[np.ndarray, "n"]:
    """The documents of a component that are meant, those left out too."""
    store = part.store
    if file not in store.meta["files"]:
        return np.zeros(0, np.int64)
    meant = store.files == store.meta["files"].index(file)
    if record is not None:
        meant &= store.records == record
    return np.flatnonzero(meant).astype(np.int64)


def _hits(
    part: Component, wanted: Int64[np.ndarray, "n"], epoch: int
) -> Iterator[tuple[int, int, int, int]]:
    """(row of the component, document, start, length) of each piece, by rising rows."""
    columns = TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with data_run.progress_bar(*columns) as progress:
        task = progress.add_task("", total=part.rows)
        for first in range(0, part.rows, _BLOCK):
            begin, stop = epoch * part.rows + first, epoch * part.rows + part.rows
            stop = min(begin + _BLOCK, stop)
            pieces = part.pieces(begin, stop)
            hit = np.isin(pieces.document, wanted)
            found = (pieces.row + begin, pieces.document, pieces.start, pieces.length)
            yield from zip(*(column[hit].tolist() for column in found), strict=True)
            progress.advance(task, stop - begin)


class _Places:
    """Where in the global batches the rows of a component stand."""

    def __init__(self, dataset: PackedDataset, name: str):
        self._dataset, self._name = dataset, name
        self._taken = functools.lru_cache(maxsize=4096)(self._rows_before)
        self._step = 0
        self._owned = functools.lru_cache(maxsize=1)(self._rows_of)

    def of(self, row: int) -> tuple[int, int] | None:
        """Step and row of the component's row; None if it never comes. Ask in rising order."""
        low = self._step
        end = _NEVER if self._dataset.steps is None else self._dataset.steps
        if len(self._dataset.components) == 1:
            step, place = divmod(row, self._dataset.batch_size)
            return (step, place) if step < end else None
        high = low + 1
        while high < end and self._taken(high) <= row:
            low, high = high, min(end, high + 2 * (high - self._step))
        if self._taken(min(high, end)) <= row:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._taken(middle) <= row else (low, middle)
        self._step = low
        return low, self._owned(low)[row - self._taken(low)]

    def _rows_before(self, step: int) -> int:
        return self._dataset.state(step)["taken"][self._name]["rows"]

    def _rows_of(self, step: int) -> list[int]:
        rows = enumerate(self._dataset.documents(step))
        return [row for row, held in rows if held and held[0].component == self._name]
