"""Reading sources from front to back, or in pieces that do not depend on who reads them."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from ziggurat.core.errors import DataError
from ziggurat.data.sources import array_records, files, lines, shards, tables
from ziggurat.data.sources.files import SourceFile, list_files
from ziggurat.data.sources.nodes import (
    ArrayRecords,
    HuggingFaceDataset,
    JsonLines,
    Parquet,
    Source,
    TextFiles,
    WebDataset,
)
from ziggurat.data.sources.records import (
    SHOWN_FAULTS,
    Damaged,
    Document,
    ReadReport,
    Records,
)

logger = logging.getLogger(__name__)

LEAST_UNIT, GREATEST_UNIT, UNITS, FILES = 4 << 20, 128 << 20, 4096, 1024
"""Bytes of a unit of work, at least and at most; how many there should be; files in one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A file, or a range of it, that can be read on its own."""

    file: SourceFile
    begin: int = 0
    """First byte, group of rows, or record, as the kind of file has it."""
    end: int | None = None
    """One after the last; None for the end of the file."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """Pieces of one source that are read by one process at a time."""

    source: int
    pieces: tuple[Piece, ...]


def read(sources: Sequence[Source], report: ReadReport | None = None) -> Iterator[Document]:
    """Read all documents of all sources, in order.

    Args:
        sources: read one after the other.
        report: filled while reading.

    Raises:
        DataError: a file, field or column is missing; a record is damaged and its source says
            ``on_error = "raise"``; or there is no document at all.
    """
    report = ReadReport() if report is None else report
    for source in sources:
        yield from _read_source(source, report)
    finish(sources, report)


def finish(sources: Sequence[Source], report: ReadReport) -> None:
    """Warn of records that were left out.

    Raises:
        DataError: there was no document.
    """
    if report.skipped:
        logger.warning("%d damaged records left out, first: %s", report.skipped, report.faults[0])
    warn_of_straddling(report.straddling, report.documents)
    if report.documents == 0:
        raise DataError(
            "corpus " + ", ".join(source.path for source in sources),
            found=f"no documents ({report.empty} empty, {report.skipped} damaged records)",
            expected="at least one document with text",
            fix="check path and glob",
        )


def warn_of_straddling(straddling: int, documents: int) -> None:
    """Warn of documents in which a token spans prompt and answer."""
    if straddling:
        logger.warning(
            "%d of %d documents have a token that is a part of both the prompt and the answer; it "
            "is learned whole, and a prompt alone ends otherwise. End prompts where tokens end, "
            "for instance without a space",
            *(straddling, documents),
        )


def _read_source(source: Source, report: ReadReport) -> Iterator[Document]:
    taken = 0
    for file in list_files(source):
        for _, record in records(source, Piece(file)):
            if isinstance(record, Document):
                report.documents += 1
                taken += 1
                yield record
                if taken == source.max_documents:
                    return
            elif isinstance(record, Damaged):
                if source.on_error == "raise":
                    raise record.error()
                report.skipped += 1
                if len(report.faults) < SHOWN_FAULTS:
                    report.faults.append(str(record.error()))
            elif record is None:
                report.empty += 1


def records(source: Source, piece: Piece) -> Records:
    """Read the records of one piece of a source.

    Raises:
        DataError: the file cannot be reached, or a column is missing.
    """
    read_ = _READERS[type(source)]
    part = () if piece.begin == 0 and piece.end is None else (piece.begin, piece.end)
    try:
        yield from read_(source, piece.file, *part)
    except Exception as error:
        # Which errors a client has is only known once it is loaded, which reading does.
        if not isinstance(error, files.client_errors()):
            raise
        raise DataError(piece.file.name, found=error, expected="a file in reach") from None


def units(sources: Sequence[Source], listed: Sequence[Sequence[SourceFile]]) -> list[Unit]:
    """Cut the sources into units of work, which follow from the files alone.

    Small files are taken together. A large file is cut if it can be read from within: JSON lines
    that are not packed at bytes, Parquet at groups of rows, a local ArrayRecord file at records.
    """
    total = sum(file.size for found in listed for file in found)
    size = min(max(total // UNITS, LEAST_UNIT), GREATEST_UNIT)
    made: list[Unit] = []
    for number, (source, found) in enumerate(zip(sources, listed, strict=True)):
        waiting: list[Piece] = []
        for file in found:
            pieces = _cut(source, file, size) if file.size > size else [Piece(file)]
            together = sum(piece.file.size for piece in waiting) + file.size
            if waiting and (len(pieces) > 1 or together > size or len(waiting) == FILES):
                made.append(Unit(number, tuple(waiting)))
                waiting = []
            if len(pieces) == 1:
                waiting += pieces
            else:
                made += [Unit(number, (piece,)) for piece in pieces]
        if waiting:
            made.append(Unit(number, tuple(waiting)))
    return made


def _cut(source: Source, file: SourceFile, size: int) -> list[Piece]:
    """Pieces of a large file, in order; one if it can only be read from its start."""
    if isinstance(source, JsonLines) and not files.is_packed(file):
        return _ranges(file, list(range(0, file.size, size)), file.size)
    if isinstance(source, Parquet):
        weights = tables.groups_of(file) or []
        starts, filled = [0], 0
        for group, weight in enumerate(weights):
            if filled and filled + weight > size:
                starts.append(group)
                filled = 0
            filled += weight
        return _ranges(file, starts, len(weights))
    if isinstance(source, ArrayRecords) and files.is_local(file):
        count = array_records.count_of(file) or 0
        step = max(1, count * size // file.size)
        return _ranges(file, list(range(0, count, step)), count)
    return [Piece(file)]


def _ranges(file: SourceFile, starts: list[int], end: int) -> list[Piece]:
    if len(starts) < 2:
        return [Piece(file)]
    return [Piece(file, *pair) for pair in zip(starts, [*starts[1:], end], strict=True)]


_READERS: dict[type, Any] = {
    TextFiles: lines.text_records,
    JsonLines: lines.json_records,
    Parquet: tables.parquet_records,
    ArrayRecords: array_records.array_records,
    HuggingFaceDataset: tables.arrow_records,
    WebDataset: shards.shard_records,
}
