"""Errors that refuse a request, with the HTTP status and the field at fault."""

import itertools
from collections.abc import Iterable, Mapping

from ziggurat.core.errors import ServeError, did_you_mean
from ziggurat.core.json_types import Json

_LONGEST = 400
"""Characters of a part of an error; clients send what is shown, and it may be megabytes."""


class RequestError(ServeError):
    """Error in a request, as one line that names the field.

    Args:
        what: the field or the thing at fault, as in :class:`~ziggurat.core.errors.ZigguratError`.
        param: the field's name, for clients; default none.

    >>> error = RequestError("temperature", found=-1, expected="0 or more", param="temperature")
    >>> error.status, error.param, str(error)
    (400, 'temperature', 'temperature: found -1; expected 0 or more')
    """

    status = 400
    kind = "invalid_request_error"
    code: str | None = None
    retry_after: int | None = None
    """Seconds after which the same request may succeed, for the header ``Retry-After``."""

    def __init__(
        self,
        what: str,
        *,
        found: object = "",
        expected: object = "",
        fix: str = "",
        param: str | None = None,
    ):
        super().__init__(
            _cut(what), found=_cut(str(found)), expected=_cut(str(expected)), fix=_cut(fix)
        )
        self.param = None if param is None else _cut(param)


def refused(place: str, found: object, expected: object, fix: str = "") -> RequestError:
    """Error of a field, which it names.

    >>> str(refused("n", 0, "1 or more")), refused("n", 0, "1 or more").param
    ('n: found 0; expected 1 or more', 'n')
    """
    return RequestError(place, found=found, expected=expected, fix=fix, param=place)


class ContextTooLong(RequestError):
    """Error: prompt and requested tokens do not fit into the context."""

    code = "context_length_exceeded"


class UnknownModel(RequestError):
    """Error: the request names a model that is not served."""

    status = 404
    code = "model_not_found"

    @classmethod
    def of(cls, name: str, served: Iterable[str]) -> "UnknownModel":
        """The error for ``name`` where only ``served`` are there."""
        known = list(served)
        return cls(
            "model",
            found=short(repr(name[:100])),
            expected=f"the model served, {known[0]}"
            if len(known) == 1
            else f"a model served: {', '.join(known) or 'none'}",
            fix=did_you_mean(name, known) if len(known) > 1 else "",
            param="model",
        )


class Unauthorized(RequestError):
    """Error: the request bears no known key."""

    status = 401
    code = "invalid_api_key"


class TooLarge(RequestError):
    """Error: the body is larger than the server reads."""

    status = 413


class QueueFull(RequestError):
    """Error: the queue is full; the request may succeed later."""

    status = 429
    kind = "rate_limit_error"
    code = "queue_full"
    retry_after = 1

    @classmethod
    def of(cls, waiting: int, limit: int, kind: str = "requests") -> "QueueFull":
        """Build the error of a queue whose waiting requests leave no room below ``limit``.

        Args:
            waiting: how many wait.
            limit: how many may.
            kind: of what, in the plural.
        """
        found, expected = f"{waiting} {kind} waiting", f"fewer than {limit}"
        return cls("queue", found=found, expected=expected, fix="try again later")


class EngineStopped(RequestError):
    """Error: the engine is closed or has failed."""

    status = 503
    kind = "server_error"
    code = "engine_stopped"


def short(value: object) -> str:
    """A value as shown in an error, without a look at more of it than is shown.

    >>> short([0] * 10**6)
    '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,...'
    """
    text = value[:61] if isinstance(value, str) else repr(_beginning(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _beginning(value: Json, depth: int = 0) -> Json:
    """A value with as much of each part as can be among the first 60 characters."""
    if depth > 60:
        return ...
    if isinstance(value, str):
        return value[:61]
    if isinstance(value, list | tuple):
        return [_beginning(each, depth + 1) for each in value[:31]]
    if isinstance(value, Mapping):
        first = itertools.islice(value.items(), 16)
        return {_beginning(key): _beginning(each, depth + 1) for key, each in first}
    return value


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
