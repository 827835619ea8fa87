"""Records of ArrayRecord files."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ziggurat.core.errors import EnvironmentError
from ziggurat.data.sources import files
from ziggurat.data.sources.contents import document
from ziggurat.data.sources.files import SourceFile
from ziggurat.data.sources.nodes import ArrayRecords
from ziggurat.data.sources.records import (
    Document,
    Fault,
    Records,
    decoded,
    json_object,
    keyed,
)

BATCH_RECORDS = 256
OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
"""Read what is asked for in the calling thread."""


def array_records(
    source: ArrayRecords, file: SourceFile, begin: int = 0, end: int | None = None
) -> Records:
    """Read the records of a file, or those numbered ``begin`` to ``end`` from 0.

    A file of an object store is copied to this machine's temporary directory while it is read. The
    format checks its chunks; of a damaged one the records are left out one by one.
    """
    try:
        with _reader(file) as reader:
            count = reader.num_records()
            stop = count if end is None else min(end, count)
            for start in range(begin, stop, BATCH_RECORDS):
                last = min(start + BATCH_RECORDS, stop)
                for index, record in enumerate(_read(reader, start, last), start=start):
                    yield index + 1, _record(source, file, index + 1, record)
    except Fault as fault:
        yield 1, fault.at(file, None)


def count_of(file: SourceFile) -> int | None:
    """Number of records; None if the file cannot be read."""
    try:
        with _reader(file) as reader:
            return reader.num_records()
    except Fault:
        return None


@contextlib.contextmanager
def _reader(file: SourceFile) -> Iterator[Any]:
    """The file opened by the ``array_record`` package."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise EnvironmentError(
            f"reading {file.name}",
            found="no package array-record",
            expected="it installed",
            fix="pip install array-record; there is none for this system if that fails",
        ) from None
    with contextlib.ExitStack() as stack:
        path = files.local_path(file)
        if not files.is_local(file):
            path = str(Path(stack.enter_context(tempfile.TemporaryDirectory()), "copy"))
            _download(file, path)
        try:
            reader = ArrayRecordReader(path, OPTIONS)
        except (RuntimeError, ValueError) as error:
            raise Fault(error, "a whole ArrayRecord file") from None
        if not reader.ok():
            raise Fault(_reason(reader), "a whole ArrayRecord file")
        try:
            yield reader
        finally:
            with contextlib.suppress(RuntimeError):
                reader.close()


def _download(file: SourceFile, path: str) -> None:
    import fsspec

    try:
        system, remote = fsspec.core.url_to_fs(file.url)
        system.get_file(remote, path)
    except OSError as error:
        raise Fault(error, "a readable file") from None


def _reason(reader: Any) -> str:
    """Error of a reader, which it reports when it is closed."""
    try:
        reader.close()
    except RuntimeError as error:
        return str(error) or "a damaged or cut file"
    return "a damaged or cut file"


def _read(reader: Any, start: int, stop: int) -> list[bytes | Exception]:
    """Records ``start`` to ``stop``; in the place of one that cannot be read, why."""
    try:
        found = reader.read(start, stop)
        if len(found) == stop - start:
            return found
    except (RuntimeError, IndexError, ValueError) as error:
        if stop - start == 1:
            return [error]
    if stop - start == 1:
        return [RuntimeError("the record cannot be read")]
    middle = (start + stop) // 2
    return _read(reader, start, middle) + _read(reader, middle, stop)


def _record(source: ArrayRecords, file: SourceFile, number: int, record: Any) -> Any:
    try:
        if isinstance(record, Exception):
            raise Fault(str(record) or "a damaged chunk", "a whole record")
        if source.content == "text" and source.field is None:
            text = decoded(record)
            return Document(text, file.name, number) if text else None
        found = json_object(record)
        return document(source, file, number, keyed(found), found)
    except Fault as fault:
        return fault.at(file, number, "record")
