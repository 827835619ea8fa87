r"""JSON lines: one JSON object a line, read alike wherever a file of them is read.

A line ends with ``\n`` and nothing else. JSON allows U+2028, U+2029 and U+0085 inside a string as
they are (RFC 8259, section 7), so ``str.splitlines``, which splits there, cuts records apart. The
rules, for data, prompts and our own logs:

* The text is UTF-8. A byte order mark before a line is skipped (RFC 8259, section 8.1, allows it;
  some editors write one, and files that were joined have several).
* A line of nothing but white space, ``\r`` included, holds no record and counts as a line.
* The last line needs no line end.
* Each record is an object whose keys are different from each other: of two values under one key
  one would be lost.
* ``NaN`` and ``Infinity`` are read, since Python writes them, though RFC 8259 does not know them.

>>> parse('\ufeff{"a": "x\u2028y"}\r\n'.encode())
{'a': 'x\u2028y'}
>>> parse(b'{"a": 1, "a": 2}')
Traceback (most recent call last):
    ...
ziggurat.core.json_lines.NotAnObject: the key 'a' twice; expected keys that differ
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import Json, JsonObject

BOM = b"\xef\xbb\xbf"
"""The byte order mark in UTF-8."""
_WHITE = b" \t\r\n"


class NotAnObject(ValueError):
    """Error: a line is no JSON object; says what was found and what was expected."""

    def __init__(self, found: object, expected: str):
        self.found, self.expected = " ".join(str(found).split()), expected
        super().__init__(f"{self.found}; expected {expected}")


def is_blank(line: bytes) -> bool:
    r"""Whether a line holds no record.

    >>> is_blank(b" \r\n"), is_blank(BOM), is_blank(b"{}")
    (True, True, False)
    """
    return not line.removeprefix(BOM).strip(_WHITE)


def parse(line: bytes) -> JsonObject:
    """Parse one line as a JSON object.

    Raises:
        NotAnObject: it is none, has a key twice, or is not UTF-8.
    """
    try:
        text = line.removeprefix(BOM).decode("utf-8")
        record = json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise NotAnObject(f"{error.reason} at byte {error.start}", "utf-8 text") from None
    except NotAnObject:
        raise
    except (ValueError, RecursionError) as error:
        raise NotAnObject(error, "one JSON object a record") from None
    if not isinstance(record, dict):
        raise NotAnObject(f"a JSON {type(record).__name__}", "a JSON object")
    return record


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their line numbers, from 1.

    Args:
        lines: a file opened in binary mode, or its bytes split at newlines.
    """
    return ((number, line) for number, line in enumerate(lines, 1) if not is_blank(line))


def read(path: Path, what: str = "file") -> Iterator[tuple[int, JsonObject]]:
    """Read the records of a file with their line numbers.

    Args:
        path: the file.
        what: what the file is, for the error that says it cannot be read.

    Raises:
        DataError: the file cannot be read, or a line is no object; file and line are named.
    """
    try:
        with open(path, "rb") as file:
            for number, line in numbered(file):
                try:
                    yield number, parse(line)
                except NotAnObject as error:
                    where = f"{path} line {number}"
                    raise DataError(where, found=error.found, expected=error.expected) from None
    except OSError as error:
        raise DataError(
            f"{what} {path}", found=error.strerror or error, expected="a readable file"
        ) from None


def read_log(path: Path) -> list[JsonObject]:
    """Read the records of a log that Ziggurat appends to: none if there is no file, and without
    lines torn by a kill or a full disk.

    >>> read_log(Path("nowhere/log.jsonl"))
    []
    """
    if not path.exists():
        return []
    found = []
    for _, line in numbered(path.read_bytes().split(b"\n")):
        try:
            found.append(parse(line))
        except NotAnObject:
            continue
    return found


def _object(pairs: list[tuple[str, Json]]) -> JsonObject:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotAnObject(f"the key {twice!r} twice", "keys that differ")
    return made
