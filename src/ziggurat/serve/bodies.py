"""Request bodies: JSON read into a type, with an error that names the field.

>>> class Ask(Body):
...     text: str
>>> read(Ask, b'{"text": "Hi"}').text
'Hi'
>>> read(Ask, b'{"text": 1}')
Traceback (most recent call last):
ziggurat.serve.errors.RequestError: text: found Expected `str`, got `int`
"""

import array
import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from ziggurat.core.errors import did_you_mean
from ziggurat.core.json_types import Json, JsonObject
from ziggurat.serve.errors import RequestError, refused, short
from ziggurat.serve.json_values import (
    LARGE,
    MAX_VALUES,
    TooManyValues,
    ValueCount,
    count_values,
    read_ids,
)

MAX_TEXTS = 2048
"""Most prompts, or texts to embed, of one request, as with OpenAI."""


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """Base of request bodies, which list their fields and types."""

    token_ids: ClassVar[str] = ""
    """The field that can be a list of token ids, or a list of such lists, if there is one."""
    not_applied: ClassVar[Mapping[str, tuple[Json, ...]]] = {}
    """Fields that clients know and this server does not apply, each with the values besides null
    that ask for nothing; a body need not have all of them."""

    @classmethod
    def applied(cls, given: JsonObject) -> JsonObject:
        """Fields of a body that are applied, for servers that ignore the others."""
        asked = {k for k, said in cls.not_applied.items() if given.get(k) not in (None, *said)}
        return {k: v for k, v in given.items() if k in cls.__struct_fields__ and k not in asked}

    def check(self) -> None:
        """Refuse values that types cannot rule out.

        Raises:
            RequestError: ``param`` names the field.
        """
        for name in self.not_applied:
            value = getattr(self, name, None)
            refuse_unless(name, value, self.asking_nothing(name))

    def asking_nothing(self, name: str) -> tuple[Json, ...]:
        """Values of a field that is not applied that ask for nothing, besides null."""
        return self.not_applied[name]


def refuse_unless(name: str, value: Json, accepted: tuple[Json, ...]) -> None:
    """Refuse a value of a field that is not applied, unless it is null or asks for nothing.

    >>> refuse_unless("store", False, (False,))
    """
    if value is None or value in accepted:
        return
    shown = " or ".join(msgspec.json.encode(entry).decode() for entry in accepted)
    expected = f"no such field, or {shown}" if shown else "no such field"
    raise refused(name, short(value), expected, "this server does not apply it")


R = TypeVar("R", bound=Body)


def read(kind: type[R], body: bytes, *, ignore: bool = False, most_ids: int | None = None) -> R:
    """Read and check a request body.

    How many values a large body holds is counted before any is made. Its token ids, if there are
    many, are read into arrays, see :func:`~ziggurat.serve.json_values.read_ids`.

    Args:
        kind: its type.
        body: JSON.
        ignore: leave fields out that are unknown or not applied.
        most_ids: most token ids of a list that is that long; default any number.

    Raises:
        RequestError: no JSON, or a field is unknown, missing, of a wrong type or not applied.
        TooManyValues: it holds more values than are decoded.
    """
    ids: array.array[int] | list[array.array[int]] | None = None
    if len(body) > LARGE:
        count = count_values(body)
        if count.total > MAX_VALUES:
            body, ids = _split(kind, body, count, most_ids)
    request = _decode(kind, body, ignore)
    if ids is not None:
        setattr(request, kind.token_ids, ids)
    request.check()
    return request


def _split(
    kind: type[Body], body: bytes, count: ValueCount, most_ids: int | None
) -> "tuple[bytes, array.array[int] | list[array.array[int]]]":
    """A body without its many token ids, and those.

    Raises:
        TooManyValues: they are not what makes it large.
    """
    where = count.largest
    name, _, text = body[where].partition(b":")
    field = kind.token_ids
    if not field or name.strip() != f'"{field}"'.encode():
        raise TooManyValues.of("request body", count.total)
    if count.total - count.in_largest > MAX_VALUES:
        raise TooManyValues.of("request body", count.total - count.in_largest)
    ids = read_ids(text, field, MAX_TEXTS, most_ids)
    return body[: where.start] + name + b":[]" + body[where.stop :], ids


def _decode(kind: type[R], body: bytes, ignore: bool) -> R:
    try:
        if ignore:
            given = kind.applied(msgspec.json.decode(body, type=dict[str, Any]))
            return msgspec.convert(given, type=kind)
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _explain(kind, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("request body", found=error, expected="valid JSON") from None


def _explain(kind: type, text: str) -> RequestError:
    reason, _, path = text.partition(" - at `$")
    where = path.rstrip("`").removeprefix(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason, re.DOTALL)
    if unknown:
        name = unknown[1]
        dotted = f"{where}.{name}" if where else name
        return RequestError(
            short(dotted),
            found="an unknown field",
            expected="a field of this request",
            fix="" if where else did_you_mean(name, kind.__struct_fields__),  # type: ignore[attr-defined]
            param=dotted,
        )
    missing = re.fullmatch(r"Object missing required field `(.*)`", reason)
    if missing:
        dotted = f"{where}.{missing[1]}" if where else missing[1]
        return RequestError(dotted, found="nothing", expected="a value", param=dotted)
    return RequestError(where or "request body", found=reason, param=where or None)
