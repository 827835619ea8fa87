"""Records of Parquet files and of the Arrow files of a Hugging Face data set."""

from collections.abc import Iterator
from typing import Any

from ziggurat.core.errors import DataError, did_you_mean
from ziggurat.core.json_types import Json
from ziggurat.data.sources import fields, files
from ziggurat.data.sources.contents import document
from ziggurat.data.sources.files import SourceFile
from ziggurat.data.sources.nodes import (
    ANSWERS,
    CONVERSATIONS,
    LABEL,
    HuggingFaceDataset,
    Parquet,
    keys_of,
)
from ziggurat.data.sources.records import Fault, Records

BATCH_ROWS = 1024


def parquet_records(
    source: Parquet, file: SourceFile, begin: int = 0, end: int | None = None
) -> Records:
    """Read the records of a file's rows, or of some of its row groups.

    A damaged group is left out as a whole and the next one is read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    damage = (pa.ArrowException, OSError, UnicodeDecodeError)
    try:
        stream = files.open_plain(file)
    except OSError as error:
        yield 1, Fault(error, "a readable file").at(file, None)
        return
    with stream as opened:
        try:
            table = pq.ParquetFile(opened)
        except damage as error:
            yield 1, Fault(error, "a whole Parquet file").at(file, None)
            return
        columns = _columns(source, file, table.schema_arrow)
        groups = range(table.num_row_groups)
        number = sum(table.metadata.row_group(group).num_rows for group in groups[:begin])
        for group in groups[begin:end]:
            last = number + table.metadata.row_group(group).num_rows
            try:
                batches = table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns)
                for row, record in _rows(source, file, batches, number):
                    yield row, record
                    number = row
            except damage as error:
                found = f"group of rows {number + 1} to {last}: {error}"
                yield last, Fault(found, "a whole Parquet file").at(file, number + 1, "row")
            number = last


def arrow_records(source: HuggingFaceDataset, file: SourceFile) -> Records:
    """Read the records of an Arrow stream file's rows."""
    import pyarrow as pa

    number = 0
    try:
        with (
            pa.memory_map(files.local_path(file))
            if files.is_local(file)
            else files.open_plain(file) as opened,
            pa.ipc.open_stream(opened) as stream,
        ):
            columns = _columns(source, file, stream.schema)
            batches = (batch.select(columns) for batch in stream)
            for row, record in _rows(source, file, batches, 0):
                yield row, record
                number = row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        yield number + 1, Fault(error, "a whole Arrow file").at(file, number + 1, "row")


def groups_of(file: SourceFile) -> list[int] | None:
    """Bytes of each row group of a Parquet file; ``None`` if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_plain(file) as opened:
            metadata = pq.ParquetFile(opened).metadata
            return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError):
        return None


def _rows(source: Any, file: SourceFile, batches: Iterator[Any], number: int) -> Records:
    for batch in batches:
        names = batch.schema.names
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            number += 1
            try:
                record = {name: _without_nulls(value) for name, value in zip(names, row)}
                yield number, document(source, file, number, record.__getitem__, record)
            except Fault as fault:
                yield number, fault.at(file, number, "row")


def _without_nulls(value: Json) -> Json:
    """A value without the keys that its table has only because other rows have them."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None or k == "content"}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _columns(source: Any, file: SourceFile, schema: Any) -> list[str]:
    """Names of the columns to read.

    Raises:
        DataError: one is not there or of a type that holds no document.
    """
    wanted, optional = keys_of(source)
    wanted += [name for name in optional if name in schema.names]
    known = [] if source.content == "text" else fields.names_beside(wanted)
    for name in wanted:
        if name not in schema.names:
            raise DataError(
                file.name,
                found=f"columns {', '.join(schema.names)}",
                expected=f"a column {name!r}",
                fix=did_you_mean(name, schema.names) or "set column",
            )
        _check_type(source, file, name, schema.field(name).type)
    return wanted + [name for name in known if name in schema.names]


def _check_type(source: Any, file: SourceFile, name: str, kind: Any) -> None:
    import pyarrow as pa

    found = kind
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    messages = (pa.types.is_list, pa.types.is_large_list, pa.types.is_struct)
    if name == LABEL and source.content in ANSWERS:
        good, expected = (pa.types.is_boolean, pa.types.is_integer), "true and false"
    elif source.content in ANSWERS:
        good, expected = (*strings, *messages), "strings or lists of messages"
    elif source.content in CONVERSATIONS:
        good, expected = messages, "a list of messages"
    elif source.content == "prompt_completion":
        good, expected = (*strings, *messages), "strings or lists of messages"
    else:
        good, expected = strings, "strings"
    if not any(is_(kind) for is_ in good):
        raise DataError(f"{file.name} column {name!r}", found=found, expected=expected)
