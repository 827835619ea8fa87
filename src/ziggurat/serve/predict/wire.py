"""A gRPC message taken apart where it lies: tensor bytes are found, not copied.

Protobuf would copy every ``raw_input_contents`` twice. Here the fields of a ``ModelInferRequest``
are walked by their lengths; the raw contents become views of the message, and the rest, which is
small, goes to protobuf.
"""

from collections.abc import Iterator

from ziggurat.serve.errors import RequestError

_RAW = 7
"""Field number of ``raw_input_contents``."""
_MOST_FIELDS = 4096
_VARINT, _LENGTH_DELIMITED = 0, 2
"""Protobuf's wire types whose content tells its own length."""
_FIXED = {1: 8, 5: 4}
"""Bytes of the wire types of fixed size."""


def part(message: bytes | memoryview) -> tuple[list[memoryview], list[memoryview]]:
    """Split a message into its head, in pieces that follow one another, and its raw contents.

    Raises:
        RequestError: it is no protobuf message, or of too many parts.
    """
    view, start = memoryview(message), 0
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    for number, kind, begin, at, end in _fields(view):
        if number == _RAW and kind == _LENGTH_DELIMITED:
            rest.append(view[start:begin])
            raw.append(view[at:end])
            start = end
    return [*rest, view[start:]], raw


def model(message: bytes | memoryview) -> tuple[str, str]:
    """Read the model's name and version from a message.

    Raises:
        RequestError: the message is none, or they are no text.
    """
    view, found = memoryview(message), {1: b"", 2: b""}
    for number, kind, _, at, end in _fields(view):
        if kind == _LENGTH_DELIMITED and number in found:
            found[number] = bytes(view[at:end])
    try:
        return found[1].decode(), found[2].decode()
    except UnicodeDecodeError:
        raise _broken("a name that is no text") from None


def field(number: int, content: bytes) -> bytes:
    """Encode a field of bytes, text or a message.

    >>> field(2, b"ab")
    b'\\x12\\x02ab'
    """
    return field_head(number, len(content)) + content


def field_head(number: int, size: int) -> bytes:
    """Tag and length before the content of such a field."""
    head, value = bytearray([number << 3 | _LENGTH_DELIMITED]), size
    while value > 127:
        head.append(value & 127 | 128)
        value >>= 7
    head.append(value)
    return bytes(head)


def _fields(view: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Every field of a message: its number and wire type, and where its tag begins and its content
    begins and ends.

    Raises:
        RequestError: it is no protobuf message, or of too many parts.
    """
    at = 0
    for _ in range(_MOST_FIELDS):
        if at >= len(view):
            return
        begin = at
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            size, at = _varint(view, at)
        elif kind == _VARINT:
            _, at = _varint(view, at)
            size = 0
        else:
            size = _FIXED.get(kind, -1)
        if size < 0 or at + size > len(view):
            raise _broken("a field that ends beyond it")
        yield tag >> 3, kind, begin, at, at + size
        at += size
    raise _broken(f"over {_MOST_FIELDS} fields")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise _broken("its end missing")
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _broken("a number of over 64 bits")


def _broken(found: str) -> RequestError:
    return RequestError("message", found=found, expected="ModelInferRequest")
