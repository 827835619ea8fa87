"""Bounds on how many values a JSON text holds, known before any of them is made.

A body of 8 MiB can hold four million values. To make them takes up to a second, in which a decoder
holds the interpreter's lock and nobody else is served, and 200 MiB. Their number follows from
commas and opening brackets, which NumPy counts at gigabytes a second without the lock. A text of
too many values is refused, but for one case: long lists of token ids are lawful. They are decoded
into arrays, piece by piece.
"""

import array
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Bool, UInt8

from ziggurat.serve.errors import ContextTooLong, RequestError, TooLarge

LARGE = 2**16
"""Bytes of a text whose values need no count: it holds 32,768 at most."""
MAX_VALUES = 2**17
"""Most values that are decoded at once, besides lists of token ids: 10 to 20 ms."""
MAX_FIELDS = 1024
"""Most fields of an object whose largest one is told."""

_BLOCK = 2**18
_PIECE = 2**14
"""Bytes of a list of ids that are decoded at once: less than a millisecond."""
_COMMA, _OPEN, _CLOSE = 1, 2, 3


def _table(**of: int) -> UInt8[np.ndarray, "256"]:
    made = np.zeros(256, np.uint8)
    for text, value in of.items():
        made[list(text.encode())] = value
    return made


_KINDS = _table(**{",": _COMMA, "[{": _OPEN, "]}": _CLOSE})
_OF_IDS = _table(**{"0123456789-,[] \t\r\n": 1})


class TooManyValues(TooLarge):
    """A JSON text of more values than the server decodes."""

    @classmethod
    def of(cls, what: str, found: int, param: str | None = None) -> "TooManyValues":
        """The error for ``found`` values in ``what``."""
        expected = f"at most {MAX_VALUES} values"
        return cls(what, found=f"{found} values", expected=expected, param=param)


class ValueCount(NamedTuple):
    """How many values a JSON text holds at most, and which field of its outer object the most."""

    total: int
    """Exact for a valid text without empty lists and objects."""
    largest: slice
    """Bytes of the largest field, its name included; empty if there are over :data:`MAX_FIELDS`."""
    in_largest: int


def count_values(text: bytes) -> ValueCount:
    """Count the values of a JSON text; of an invalid one, at least those before its first error.

    >>> count_values(b'{"a": [1, 2], "b,": 0}')
    ValueCount(total=5, largest=slice(1, 12, None), in_largest=3)
    """
    walk = _Walk()
    data = np.frombuffer(text, np.uint8)
    for at in range(0, len(data), _BLOCK):
        walk.take(data[at : at + _BLOCK])
    return walk.found(len(text))


class _Walk:
    """The state between one block of a text and the next."""

    def __init__(self) -> None:
        self._at = self._total = self._depth = 0
        self._inside = self._escaped = False
        self._borders: list[tuple[int, int]] = []
        """Ends of the outer object's fields, each with the values before it."""
        self._begin = (0, 0)

    def take(self, block: UInt8[np.ndarray, "n"]) -> None:
        """Count a block's values."""
        kinds = _KINDS[block]
        kinds[self._strings(block)] = 0
        places = np.flatnonzero(kinds)
        found = kinds[places]
        steps = (found == _OPEN).astype(np.int64) - (found == _CLOSE)
        depths = self._depth + np.cumsum(steps)
        totals = self._total + np.cumsum(found != _CLOSE)
        if not len(places):
            self._at += len(block)
            return
        if self._total == 0:
            self._begin = (self._at + int(places[0]) + 1, 1)
        outer = np.flatnonzero(((found == _COMMA) & (depths == 1)) | (depths == 0))
        for place, total in zip(places[outer[:MAX_FIELDS]], totals[outer[:MAX_FIELDS]]):
            if len(self._borders) <= MAX_FIELDS:
                self._borders.append((self._at + int(place), int(total)))
        self._depth, self._total = int(depths[-1]), int(totals[-1])
        self._at += len(block)

    def _strings(self, block: UInt8[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        """Which bytes are inside strings."""
        quotes = block == ord('"')
        slashes = np.flatnonzero(block == ord("\\"))
        ends = self._escapes(slashes, len(block))
        quotes[ends[ends < len(block)]] = False
        inside = np.bitwise_xor.accumulate(quotes.view(np.uint8)).view(bool)
        if self._inside:
            inside = ~inside
        self._inside = bool(inside[-1])
        return inside

    def _escapes(self, slashes: np.ndarray, size: int) -> np.ndarray:
        """Places of the bytes that a backslash escapes, the last ones of runs only."""
        escaped, self._escaped = self._escaped, False
        first = np.array([0] if escaped and (not len(slashes) or slashes[0] > 0) else [], np.int64)
        if not len(slashes):
            return first
        starts = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
        lengths = np.diff(starts, append=len(slashes))
        after = slashes[starts] + lengths
        if escaped and slashes[0] == 0:
            lengths[0] -= 1
        odd = after[lengths % 2 == 1]
        self._escaped = bool(len(odd)) and int(odd[-1]) == size
        return np.concatenate([first, odd])

    def found(self, size: int) -> ValueCount:
        """The count of a whole text of so many bytes."""
        total = self._total + 1
        if len(self._borders) > MAX_FIELDS:
            return ValueCount(total, slice(0, 0), 0)
        largest, most, (begin, before) = slice(0, 0), 0, self._begin
        ends = self._borders if self._depth <= 0 else [*self._borders, (size, self._total)]
        for place, (end, values) in enumerate(ends, 1):
            held = values - before + (place == len(ends))  # after all others there is a comma
            if held > most:
                largest, most = slice(begin, end), held
            begin, before = end + 1, values
        return ValueCount(total, largest, most)


class ValueBudget:
    """Values that JSON texts inside a request, such as the arguments of calls, may hold together.

    >>> budget = ValueBudget()
    >>> budget.take('{"x": 1}', "arguments")
    >>> budget.left
    131070
    """

    _SHORT = 256

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def take(self, text: str, place: str) -> None:
        """Count a text before it is decoded.

        Raises:
            TooManyValues: they are too many.
        """
        if len(text) <= self._SHORT:
            found = 1 + sum(map(text.count, ",[{"))
        else:
            found = count_values(text.encode("utf-8", "replace")).total
        self.left -= found
        if self.left < 0:
            raise TooManyValues.of(place, MAX_VALUES - self.left, place)


def read_ids(
    text: bytes, field: str, most_lists: int, most_ids: int | None
) -> "array.array[int] | list[array.array[int]]":
    """Token ids of a long JSON list, or of a list of lists, in arrays.

    They are decoded :data:`_PIECE` bytes at a time, and only once their number is known to fit.

    Args:
        text: the list.
        field: its name, for errors.
        most_lists: most lists.
        most_ids: most ids of a list; default any number.

    Raises:
        RequestError: it holds anything but integers, more of them than fit, or no 32-bit ones.
    """
    text = text.strip()
    data = np.frombuffer(text, np.uint8)
    opens = np.flatnonzero(data == ord("["))
    closes = np.flatnonzero(data == ord("]"))
    if not _OF_IDS[data].all() or not len(opens) or opens[0] or text[-1:] != b"]":
        raise TooManyValues.of(field, int(np.count_nonzero(data == ord(","))) + 1, field)
    if len(opens) - 1 > most_lists:
        found, expected = f"{len(opens) - 1} lists", f"at most {most_lists}"
        raise RequestError(field, found=found, expected=expected, param=field)
    if len(opens) == 1:
        _check_count(text, field, most_ids)
        return _read_list(text[1:-1], field)
    inner = list(zip(opens[1:].tolist(), closes[:-1].tolist()))
    borders = [at for pair in inner for at in pair]
    if len(opens) != len(closes) or borders != sorted(borders):
        raise _invalid(field)
    between = [text[close + 1 : begin] for close, begin in zip([0, *closes[:-1]], [*opens[1:], -1])]
    _decoded(b"[" + b"0".join(between) + b"]", field)
    lists = [text[begin + 1 : end] for begin, end in inner]
    for each in lists:
        _check_count(each, field, most_ids)
    return [_read_list(each, field) for each in lists]


def _check_count(text: bytes, field: str, most: int | None) -> None:
    """Refuse a list of more ids than fit."""
    found = text.count(b",") + 1
    if most is not None and found > most:
        raise ContextTooLong(
            field,
            found=f"{found} tokens",
            expected=f"at most {most} tokens",
            fix="shorten it",
            param=field,
        )


def _read_list(text: bytes, field: str) -> "array.array[int]":
    """The ids between the brackets of a list."""
    ids, at = array.array("i"), 0
    while at < len(text):
        end = text.find(b",", at + _PIECE)
        end = len(text) if end < 0 else end
        found = _decoded(b"[" + text[at:end] + b"]", field)
        if not found and len(text) > end - at:
            raise _invalid(field)  # nothing before or after a comma
        try:
            ids.fromlist(found)
        except OverflowError:
            large = next(i for i in found if not -(2**31) <= i < 2**31)
            raise RequestError(field, found=large, expected="token ids", param=field) from None
        at = end + 1
    if text.endswith(b","):
        raise _invalid(field)
    return ids


def _decoded(text: bytes, field: str) -> list[int]:
    try:
        return msgspec.json.decode(text, type=list[int])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _invalid(field) from None


def _invalid(field: str) -> RequestError:
    return RequestError(field, found="no valid JSON", expected="a list of token ids", param=field)
