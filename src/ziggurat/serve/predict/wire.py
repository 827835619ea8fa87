"""A gRPC message taken apart where it lies: tensor bytes are found, not copied.

Protobuf would copy every ``raw_input_contents`` twice. Here the fields of a ``ModelInferRequest``
are walked by their lengths; the raw contents become views of the message, and the rest, which is
small, goes to protobuf.
"""

from ziggurat.serve.errors import RequestError

_RAW = 7
"""Field number of ``raw_input_contents``."""
_MOST_FIELDS = 4096


def part(message: bytes) -> tuple[list[memoryview], list[memoryview]]:
    """The message without its raw contents, in pieces that follow one another, and those.

    Raises:
        RequestError: it is no protobuf message, or of too many parts.
    """
    view, at, start = memoryview(message), 0, 0
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    for _ in range(_MOST_FIELDS):
        if at >= len(view):
            return [*rest, view[start:at]], raw
        begin = at
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(view, at)
        elif kind == 0:
            _, at = _varint(view, at)
            size = 0
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(view):
            raise _broken("a field that ends beyond it")
        if tag >> 3 == _RAW and kind == 2:
            rest.append(view[start:begin])
            raw.append(view[at : at + size])
            start = at + size
        at += size
    raise _broken(f"over {_MOST_FIELDS} fields")


def model(message: bytes) -> tuple[str, str]:
    """The model's name and version, from a message that :func:`part` has walked.

    Raises:
        RequestError: they are no text.
    """
    view, at, found = memoryview(message), 0, {1: b"", 2: b""}
    while at < len(view):
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(view, at)
        elif kind == 0:
            _, at = _varint(view, at)
            size = 0
        else:
            size = 8 if kind == 1 else 4
        if kind == 2 and tag >> 3 in found:
            found[tag >> 3] = bytes(view[at : at + size])
        at += size
    try:
        return found[1].decode(), found[2].decode()
    except UnicodeDecodeError:
        raise _broken("a name that is no text") from None


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
