"""Records of text files and of JSON lines."""

from typing import Any

from ziggurat.core import json_lines
from ziggurat.core.errors import DataError
from ziggurat.data.sources import files
from ziggurat.data.sources.contents import document
from ziggurat.data.sources.files import SourceFile
from ziggurat.data.sources.nodes import JsonLines, TextFiles
from ziggurat.data.sources.records import (
    BLANK,
    Document,
    Fault,
    Records,
    decoded,
    json_object,
    keyed,
)


def text_records(source: TextFiles, file: SourceFile) -> Records:
    """Read a text file as one document."""
    try:
        with files.open_plain(file) as stream:
            content = stream.read()
    except OSError as error:
        raise DataError(
            file.name, found=error.strerror or error, expected="a readable file"
        ) from None
    try:
        text = decoded(content, source.encoding)
        yield 1, Document(text, file.name, 1) if text else None
    except Fault as fault:
        yield 1, fault.at(file, None)


def json_records(
    source: JsonLines, file: SourceFile, begin: int = 0, end: int | None = None
) -> Records:
    """Read the records of a file's lines, or of the lines that start in a range of bytes."""
    number = 0
    try:
        with files.open_plain(file) as plain:
            stream = files.unpacked(file, plain)
            place = _first_line(stream, begin)
            for number, line in enumerate(stream, start=1):
                if end is not None and place >= end:
                    return
                place += len(line)
                yield (
                    number,
                    (BLANK if json_lines.is_blank(line) else _record(source, file, number, line)),
                )
    except files.DAMAGE as error:
        yield number + 1, Fault(error, "a whole file").at(file, number + 1)


def _first_line(stream: Any, begin: int) -> int:
    """Go to the first line that starts at or after byte ``begin``."""
    if begin == 0:
        return 0
    stream.seek(begin - 1)
    return begin - 1 + len(stream.readline())


def _record(source: JsonLines, file: SourceFile, number: int, line: bytes) -> Any:
    try:
        record = json_object(line)
        return document(source, file, number, keyed(record), record)
    except Fault as fault:
        return fault.at(file, number)
