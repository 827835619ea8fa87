"""Request bodies: JSON read into a type, with an error that names the field.

>>> class Ask(Body):
...     text: str
>>> read(Ask, b'{"text": "Hi"}').text
'Hi'
>>> read(Ask, b'{"text": 1}')
Traceback (most recent call last):
ziggurat.serve.errors.RequestError: text: found Expected `str`, got `int`
"""

import re
from typing import Any, TypeVar

import msgspec

from ziggurat.core.errors import did_you_mean
from ziggurat.serve.errors import RequestError


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """A request's body; kinds of it list their fields and types."""

    @classmethod
    def applied(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The fields of a body that are applied, for servers that ignore the others."""
        return {key: value for key, value in given.items() if key in cls.__struct_fields__}

    def check(self) -> None:
        """Refuse what types cannot tell.

        Raises:
            RequestError: ``param`` names the field.
        """


R = TypeVar("R", bound=Body)


def read(kind: type[R], body: bytes, *, ignore: bool = False) -> R:
    """Read and check a request body.

    Args:
        kind: its type.
        body: JSON.
        ignore: leave fields out that are unknown or not applied.

    Raises:
        RequestError: no JSON, or a field is unknown, missing, of a wrong type or not applied.
    """
    try:
        if ignore:
            given = kind.applied(msgspec.json.decode(body, type=dict[str, Any]))
            request = msgspec.convert(given, type=kind)
        else:
            request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _explain(kind, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("request body", found=error, expected="valid JSON") from None
    request.check()
    return request


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


def short(value: Any) -> str:
    """A value as shown in an error."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
