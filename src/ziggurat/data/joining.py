"""Joins the parts of a token store: plain copies, in the order of the sources."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonObject
from ziggurat.data.parts import StorePart
from ziggurat.data.sources import JsonLines, ReadReport, Source
from ziggurat.data.sources.reading import Unit, finish
from ziggurat.data.sources.records import SHOWN_FAULTS

BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Taken:
    """Selection of a part's documents that enter the store."""

    part: StorePart
    documents: int
    """Number of leading documents taken: all, unless the source's limit is met."""
    whole: bool
    """Whether reading came to the part's end."""
    shift: int
    """Records before it in its file, where it counts them from its own beginning."""


def choose(
    sources: Sequence[Source], units: Sequence[Unit], parts: Mapping[int, StorePart]
) -> list[Taken]:
    """Select documents of each part as reading the sources in order would.

    Args:
        sources: with their limits.
        units: all units of work.
        parts: by unit; those behind a limit may be missing.

    Raises:
        DataError: the first failure that such reading would have met.
    """
    chosen: list[Taken] = []
    counts = [0] * len(sources)
    shift, last = 0, ""
    for number, unit in enumerate(units):
        limit = sources[unit.source].max_documents
        if limit is not None and counts[unit.source] >= limit:
            continue
        part, first = parts[number], unit.pieces[0]
        ranged = isinstance(sources[unit.source], JsonLines) and first.end is not None
        shift = shift if ranged and first.begin and first.file.name == last else 0
        room = part.documents if limit is None else limit - counts[unit.source]
        documents = min(part.documents, room)
        counts[unit.source] += documents
        whole = limit is None or counts[unit.source] < limit
        failure = part.failure(shift)
        if whole and failure is not None:
            raise failure
        chosen.append(Taken(part, documents, whole, shift))
        shift, last = shift + part.places, first.file.name
    return chosen


def join(
    sources: Sequence[Source],
    chosen: Sequence[Taken],
    directory: Path,
    dtype: np.dtype,
    learn: bool,
) -> JsonObject:
    """Write the store's arrays; returns the content of ``meta.json`` on them.

    Raises:
        DataError: there is no document.
    """
    report, names, columns = ReadReport(), dict[str, int](), _Columns()
    for taken in chosen:
        columns.add(taken, names, report)
    finish(sources, report)
    lengths = np.concatenate(columns.lengths)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    digest = xxhash.xxh3_128()
    _copy(chosen, columns, "tokens.bin", dtype.itemsize, directory, digest)
    digest.update(offsets.tobytes())
    if learn:
        _copy(chosen, columns, "learn.bin", 1, directory, digest)
    np.save(directory / "offsets.npy", offsets)
    np.save(directory / "files.npy", np.concatenate(columns.files).astype(np.uint32))
    np.save(directory / "records.npy", np.concatenate(columns.records))
    np.save(directory / "identities.npy", np.concatenate(columns.identities))
    margins = np.concatenate(columns.margins).astype(np.float32)
    has_margins = bool(np.isfinite(margins).any())
    if has_margins:
        np.save(directory / "margins.npy", margins)
        digest.update(margins.tobytes())
    return {
        "content": digest.hexdigest(),
        "dtype": dtype.str,
        "documents": len(lengths),
        "tokens": int(offsets[-1]),
        "learn": learn,
        "margins": has_margins,
        "files": list(names),
        "report": dataclasses.asdict(report),
    }


class _Columns:
    """The documents' lengths, files and records, part by part."""

    def __init__(self) -> None:
        self.lengths: list[np.ndarray] = []
        self.files: list[np.ndarray] = []
        self.records: list[np.ndarray] = []
        self.identities: list[np.ndarray] = []
        self.margins: list[np.ndarray] = []

    def add(self, taken: Taken, names: dict[str, int], report: ReadReport) -> None:
        index, count = taken.part.index(), taken.documents
        local = index["files"][:count]
        # Names are numbered as their first documents come.
        used = taken.part.facts["names"][: int(local.max()) + 1 if count else 0]
        table = np.array([names.setdefault(name, len(names)) for name in used], np.int64)
        self.lengths.append(index["lengths"][:count])
        self.files.append(table[local] if count else local)
        self.records.append(index["records"][:count] + taken.shift)
        self.identities.append(index["identities"][:count])
        self.margins.append(index["margins"][:count])
        report.straddling += int(index["straddles"][:count].sum())
        report.documents += count
        before = {name: index[name] for name in ("empty", "skipped")}
        if not taken.whole:
            before = {name: found[found < count] for name, found in before.items()}
        report.empty += len(before["empty"])
        report.skipped += len(before["skipped"])
        shown = taken.part.faults(taken.shift)[: len(before["skipped"])]
        report.faults += [line for _, line in shown][: SHOWN_FAULTS - len(report.faults)]


def _copy(
    chosen: Sequence[Taken],
    columns: _Columns,
    name: str,
    width: int,
    directory: Path,
    digest: Any,
) -> None:
    """Copy one file of the parts end to end.

    Raises:
        DataError: a part is shorter than its index says.
    """
    with open(directory / name, "wb") as out:
        for taken, lengths in zip(chosen, columns.lengths, strict=True):
            left = int(lengths.sum()) * width
            with open(taken.part.path / name, "rb") as file:
                while left:
                    block = file.read(min(left, BLOCK))
                    if not block:
                        raise DataError(
                            f"{taken.part.path}/{name}", found="a cut part", expected="a whole one"
                        )
                    digest.update(block)
                    out.write(block)
                    left -= len(block)
