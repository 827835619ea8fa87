"""One record of a source: a document, an empty record, or damage with its place."""

import codecs
import dataclasses
import functools
from collections.abc import Callable, Iterator

import xxhash

from ziggurat.core import json_lines
from ziggurat.core.errors import DataError, did_you_mean
from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.data.sources.files import SourceFile

SHOWN_FAULTS = 5
"""How many damaged records a report names; it counts them all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One document and where it stands."""

    text: str
    """The text; of a conversation, its messages' contents, one below the other, until
    :func:`ziggurat.data.conversation.rendered` puts the template's text in their place."""
    file: str
    """The file, named as the run file names it."""
    record: int
    """Line, row, record or sample in the file, from 1; 1 for a text file."""
    learned: tuple[tuple[int, int], ...] | None = None
    """Ranges of characters that are learned; None means all."""
    templated: bool = False
    """Whether a chat template made the text, bos and all."""
    closed: bool = False
    """Whether the text itself ends what is learned last, as a template does with a turn."""
    messages: tuple[JsonMapping, ...] | None = None
    """The conversation, if it is one."""
    turns: tuple[int, ...] | None = None
    """Numbers of the messages that are learned; None means all of the assistant's."""
    tools: tuple[Json, ...] | None = None
    """Tools that the assistant may call, as the chat template takes them."""
    variables: JsonMapping | None = None
    """Further variables of the template."""
    images: tuple[str | bytes, ...] = ()
    """Images in the order of their parts in the messages: a file's path or data URI, or its
    content."""
    margin: float | None = None
    """Least difference of scores by which the chosen answer should lead."""
    key: str | None = None
    """Text whose hash is the identity; the document's text if not given."""

    @property
    def identity(self) -> int:
        """Hash of the document's content, 64 bits: equal under every path and every tokenizer.

        The answers of one record share one identity.
        """
        content = self.text if self.key is None else self.key
        return xxhash.xxh3_64_intdigest(content.encode("utf-8", "surrogatepass"))


@dataclasses.dataclass(frozen=True, slots=True)
class Damaged:
    """A damaged record, with its fault."""

    file: str
    """The file, named as the run file names it."""
    record: int | None
    """Number of the record in the file, or in the range that was read; ``None`` for the whole
    file."""
    found: str
    expected: str
    word: str = "line"
    """Name of a record in this kind of file."""

    def error(self, shift: int = 0) -> DataError:
        """The error that names it; ``shift`` is the number of records before the range."""
        where = (
            self.file if self.record is None else f"{self.file} {self.word} {self.record + shift}"
        )
        return DataError(
            where, found=self.found, expected=self.expected, fix='or set on_error = "skip"'
        )


class Blank:
    """An empty line or the like, which counts as a record's place but holds none."""


BLANK = Blank()

Record = Document | Damaged | Blank | None
"""Record at one place of a file; ``None`` is a record with nothing to learn in it."""

Records = Iterator[tuple[int, Record]]
"""Numbers from 1, counted in the piece that is read, and what stands there."""


@dataclasses.dataclass
class ReadReport:
    """Records that reading left out."""

    documents: int = 0
    """Documents read."""
    empty: int = 0
    """Records without a single character, or without one to learn, left out."""
    straddling: int = 0
    """Documents of which a learned token begins in what is not learned, or ends there."""
    skipped: int = 0
    """Damaged records left out under ``on_error = "skip"``."""
    faults: list[str] = dataclasses.field(default_factory=list)
    """The first few damaged records, one line each."""


class Fault(Exception):
    """Description of a record's fault: what was found, and what was expected."""

    def __init__(self, found: object, expected: str):
        self.found, self.expected = " ".join(str(found).split()), expected
        super().__init__(self.found, expected)

    def at(self, file: SourceFile, record: int | None, word: str = "line") -> Damaged:
        """The fault with its place in the file."""
        return Damaged(file.name, record, *self.args, word=word)


def keyed(record: JsonMapping) -> Callable[[str], Json]:
    """Access to a JSON object's values that says which keys there are."""
    return functools.partial(_value, record)


def _value(record: JsonMapping, key: str) -> Json:
    if key in record:
        return record[key]
    hint = did_you_mean(key, record)
    found = f"keys {', '.join(map(repr, record)) or 'none'}"
    raise Fault(found, f"a key {key!r}{', ' + hint if hint else ''}")


def json_object(line: bytes) -> JsonObject:
    """A JSON object from its bytes.

    Raises:
        Fault: it is none.
    """
    try:
        return json_lines.parse(line)
    except json_lines.NotAnObject as error:
        raise Fault(error.found, error.expected) from None


def decoded(content: bytes, encoding: str = "utf-8") -> str:
    """Text from its bytes; a byte order mark before UTF-8 is no part of it.

    Raises:
        Fault: they are not in that encoding.
    """
    if codecs.lookup(encoding).name == "utf-8":
        content = content.removeprefix(json_lines.BOM)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise Fault(f"{error.reason} at byte {error.start}", f"{encoding} text") from None


def checked_text(value: Json, key: str) -> str:
    """``value`` if it is a text that a tokenizer takes.

    JSON can spell half a surrogate pair, which is no character.
    """
    if not isinstance(value, str):
        raise Fault("null" if value is None else f"{key!r}: {type(value).__name__}", "a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Fault(f"a lone surrogate at character {error.start}", "text") from None
    return value
