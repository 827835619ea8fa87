"""Where documents come from: text files, JSON lines and Parquet, in one fixed order.

A source is a configuration node; :func:`read` yields its documents sorted by file name and then as
they stand in the file. A document is known by its file, named as the run file names it, and its
number there, so its identity is the same on every machine. Paths go through fsspec; ``~`` is the
home directory and ``{stdlib}`` the directory of Python's standard library.

>>> source = TextFiles(path="{stdlib}/json", glob="*.py", max_documents=2)
>>> [document.file for document in read([source])]
['{stdlib}/json/__init__.py', '{stdlib}/json/decoder.py']
"""

import codecs
import dataclasses
import hashlib
import json
import logging
import os
import re
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator

from ziggurat.core import config
from ziggurat.core.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

SHOWN_FAULTS = 5
"""How many damaged records a report names; it counts them all."""


class _Source:
    """Rules common to all sources."""

    def __post_init__(self) -> None:
        here: Any = self
        config.require(bool(here.path), "path", here.path, "a file or directory")
        config.require(
            not set("*?") & set(here.path), "path", here.path, "no wildcards; put them into glob"
        )
        config.require(
            here.max_documents is None or here.max_documents > 0,
            "max_documents",
            here.max_documents,
            "a positive number",
        )
        if hasattr(here, "encoding"):
            try:
                codecs.lookup(here.encoding)
            except LookupError:
                config.require(False, "encoding", here.encoding, "an encoding Python knows")


@config.node
class TextFiles(_Source):
    """Each file is one document."""

    kind: Literal["text"] = "text"
    path: str
    """A file, or a directory in which ``glob`` chooses files."""
    glob: str = "**/*"
    """Which files below a directory; ``**`` crosses directories."""
    exclude: tuple[str, ...] = ()
    """Patterns of files below the directory to leave out, such as ``**/test/**``."""
    encoding: str = "utf-8"
    """How the bytes are read; line ends are kept as they are."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged record does: stop, or be left out and counted."""


@config.node
class JsonLines(_Source):
    """Each line is one record, a JSON object; ``.gz``, ``.bz2`` and ``.xz`` are unpacked."""

    kind: Literal["jsonl"] = "jsonl"
    path: str
    """A file, or a directory in which ``glob`` chooses files."""
    glob: str = "**/*.jsonl*"
    """Which files below a directory; ``**`` crosses directories."""
    exclude: tuple[str, ...] = ()
    """Patterns of files below the directory to leave out."""
    field: str = "text"
    """The key that holds the document."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged record does: stop, or be left out and counted."""


@config.node
class Parquet(_Source):
    """Each row is one record; read in batches, only the column asked for."""

    kind: Literal["parquet"] = "parquet"
    path: str
    """A file, or a directory in which ``glob`` chooses files."""
    glob: str = "**/*.parquet"
    """Which files below a directory; ``**`` crosses directories."""
    exclude: tuple[str, ...] = ()
    """Patterns of files below the directory to leave out."""
    column: str = "text"
    """The string column that holds the document."""
    max_documents: int | None = None
    """Stop after this many documents, in order."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a damaged record does: stop, or be left out and counted."""


Source = Annotated[TextFiles | JsonLines | Parquet, Discriminator("kind")]


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One document and where it stands."""

    text: str
    file: str
    """The file, named as the run file names it."""
    record: int
    """Line of a JSON lines file, row of a Parquet file, from 1; 1 for a text file."""


@dataclasses.dataclass
class ReadReport:
    """What reading left out."""

    documents: int = 0
    """Documents read."""
    empty: int = 0
    """Records without a single character, left out."""
    skipped: int = 0
    """Damaged records left out under ``on_error = "skip"``."""
    faults: list[str] = dataclasses.field(default_factory=list)
    """The first few damaged records, one line each."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source."""

    name: str
    """As the run file names it; this is what identity and errors use."""
    url: str
    """Where it is on this machine."""
    size: int
    """Bytes."""
    changed: str
    """Modification time or entity tag."""


def read(
    sources: Sequence[TextFiles | JsonLines | Parquet], report: ReadReport | None = None
) -> Iterator[Document]:
    """All documents of all sources, in order.

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
    if report.skipped:
        logger.warning("%d damaged records left out, first: %s", report.skipped, report.faults[0])
    if report.documents == 0:
        raise DataError(
            "corpus " + ", ".join(source.path for source in sources),
            found=f"no documents ({report.empty} empty, {report.skipped} damaged records)",
            expected="at least one document with text",
            fix="check path and glob",
        )


def _read_source(source: TextFiles | JsonLines | Parquet, report: ReadReport) -> Iterator[Document]:
    taken = 0
    for file in list_files(source):
        for record, content in _RECORDS[type(source)](source, file):
            if isinstance(content, DataError):
                if source.on_error == "raise":
                    raise content
                report.skipped += 1
                if len(report.faults) < SHOWN_FAULTS:
                    report.faults.append(str(content))
            elif not content:
                report.empty += 1
            else:
                report.documents += 1
                taken += 1
                yield Document(content, file.name, record)
                if taken == source.max_documents:
                    return


def list_files(source: TextFiles | JsonLines | Parquet) -> list[SourceFile]:
    """The files of one source, sorted by name.

    Raises:
        DataError: the path does not exist, or no file below it matches.
    """
    import fsspec
    from fsspec.utils import glob_translate

    files, root = fsspec.core.url_to_fs(expand(source.path))
    if files.isfile(root):
        default = {f.name: f.default for f in dataclasses.fields(source)}["glob"]
        if source.glob != default or source.exclude:
            raise DataError(
                f"source {source.path}", found="a file", expected="a directory for glob and exclude"
            )
        return [_describe(files, root, source.path)]
    if not files.isdir(root):
        raise DataError(
            f"source {source.path}", found="no such file or directory", fix="check data.sources"
        )
    # Translate the patterns ourselves: a root that holds brackets must not become a pattern.
    wanted = re.compile(glob_translate(source.glob))
    unwanted = [re.compile(glob_translate(pattern)) for pattern in source.exclude]
    prefix = root.rstrip("/") + "/"
    depth = None if "**" in source.glob else source.glob.count("/") + 1
    below = {path.removeprefix(prefix): path for path in files.find(root, maxdepth=depth)}
    names = sorted(
        name
        for name in below
        if wanted.match(name) and not any(pattern.match(name) for pattern in unwanted)
    )
    if not names:
        raise DataError(
            f"source {source.path}",
            found=f"{len(below)} files, none of which matches {source.glob}",
            expected="at least one match",
            fix="check glob and exclude",
        )
    return [_describe(files, below[name], f"{source.path.rstrip('/')}/{name}") for name in names]


def expand(path: str) -> str:
    """``path`` on this machine: ``{stdlib}`` and a leading ``~`` replaced."""
    stdlib = sysconfig.get_paths()["stdlib"]
    return os.path.expanduser(path.replace("${stdlib}", stdlib).replace("{stdlib}", stdlib))


def signature(sources: Sequence[TextFiles | JsonLines | Parquet]) -> str:
    """A digest of the sources' settings and of the names, sizes and times of their files."""
    listed = [
        [config.to_plain(source), [dataclasses.astuple(file) for file in list_files(source)]]
        for source in sources
    ]
    return hashlib.blake2b(json.dumps(listed).encode(), digest_size=16).hexdigest()


def _describe(files: Any, path: str, name: str) -> SourceFile:
    info = files.info(path)
    changed = next((info[k] for k in ("mtime", "ETag", "LastModified") if k in info), "")
    return SourceFile(name, files.unstrip_protocol(path), int(info["size"] or 0), str(changed))


def _damaged(file: SourceFile, record: int | None, found: object, expected: str) -> DataError:
    where = file.name if record is None else f"{file.name} line {record}"
    text = " ".join(str(found).split())
    return DataError(where, found=text, expected=expected, fix='or set on_error = "skip"')


_Records = Iterator[tuple[int, str | DataError]]


def _text_records(source: TextFiles, file: SourceFile) -> _Records:
    import fsspec

    try:
        with fsspec.open(file.url, "rb") as stream:
            content = stream.read()  # type: ignore[union-attr]
    except OSError as error:
        raise DataError(
            file.name, found=error.strerror or error, expected="a readable file"
        ) from None
    try:
        yield 1, content.decode(source.encoding)
    except UnicodeDecodeError as error:
        found = f"{error.reason} at byte {error.start}"
        yield 1, _damaged(file, None, found, f"{source.encoding} text")


def _json_records(source: JsonLines, file: SourceFile) -> _Records:
    import lzma

    import fsspec

    number = 0
    try:
        with fsspec.open(file.url, "rb", compression="infer") as stream:
            for number, line in enumerate(stream, start=1):  # type: ignore[arg-type]
                if line.strip():
                    yield number, _json_text(source, file, number, line)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        yield number + 1, _damaged(file, number + 1, error, "a whole file")


def _json_text(source: JsonLines, file: SourceFile, number: int, line: bytes) -> str | DataError:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _damaged(file, number, f"{error.reason} at byte {error.start}", "utf-8 text")
    except (ValueError, RecursionError) as error:
        return _damaged(file, number, error, "one JSON object a line")
    if not isinstance(record, dict):
        return _damaged(file, number, f"a JSON {type(record).__name__}", "a JSON object")
    if source.field not in record:
        hint = did_you_mean(source.field, record)
        found = f"keys {', '.join(map(repr, record)) or 'none'}"
        return _damaged(file, number, found, f"a key {source.field!r}{', ' + hint if hint else ''}")
    text = record[source.field]
    if not isinstance(text, str):
        return _damaged(file, number, f"{source.field!r}: {type(text).__name__}", "a string")
    return _without_surrogates(file, number, text)


def _without_surrogates(file: SourceFile, number: int, text: str) -> str | DataError:
    """JSON can spell half a surrogate pair, which is no character and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return _damaged(file, number, f"a lone surrogate at character {error.start}", "text")
    return text


def _parquet_records(source: Parquet, file: SourceFile) -> _Records:
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with fsspec.open(file.url, "rb") as stream:
            table = pq.ParquetFile(stream)
            _check_column(source, file, table.schema_arrow)
            for batch in table.iter_batches(batch_size=1024, columns=[source.column]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if text is None:
                        yield number, _damaged(file, number, "null", "a string")
                    else:
                        yield number, text
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        yield number + 1, _damaged(file, None, error, "a whole Parquet file")


def _check_column(source: Parquet, file: SourceFile, schema: Any) -> None:
    import pyarrow as pa

    if source.column not in schema.names:
        raise DataError(
            file.name,
            found=f"columns {', '.join(schema.names)}",
            expected=f"a column {source.column!r}",
            fix=did_you_mean(source.column, schema.names) or "set column",
        )
    kind = schema.field(source.column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{file.name} column {source.column!r}", found=kind, expected="strings")


_RECORDS: dict[type, Any] = {
    TextFiles: _text_records,
    JsonLines: _json_records,
    Parquet: _parquet_records,
}
