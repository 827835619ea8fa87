"""Errors that refuse a request, with the HTTP status and the field at fault."""

from collections.abc import Iterable

from ziggurat.core.errors import ServeError, did_you_mean


class RequestError(ServeError):
    """A request asks for what cannot be given; one line, naming the field.

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
        super().__init__(what, found=found, expected=expected, fix=fix)
        self.param = param


class ContextTooLong(RequestError):
    """Prompt and requested tokens do not fit into the context."""

    code = "context_length_exceeded"


class UnknownModel(RequestError):
    """The request names a model that is not served."""

    status = 404
    code = "model_not_found"

    @classmethod
    def of(cls, name: str, served: Iterable[str]) -> "UnknownModel":
        """The error for ``name`` where only ``served`` are there."""
        known = list(served)
        return cls(
            "model",
            found=repr(name),
            expected=f"the model served, {known[0]}"
            if len(known) == 1
            else f"a model served: {', '.join(known) or 'none'}",
            fix=did_you_mean(name, known) if len(known) > 1 else "",
            param="model",
        )


class Unauthorized(RequestError):
    """The request bears no key that is known."""

    status = 401
    code = "invalid_api_key"


class TooLarge(RequestError):
    """The body is larger than the server reads."""

    status = 413


class QueueFull(RequestError):
    """As many requests wait as the engine is willing to hold."""

    status = 429
    kind = "rate_limit_error"
    code = "queue_full"
    retry_after = 1

    @classmethod
    def of(cls, waiting: int, limit: int, kind: str = "requests") -> "QueueFull":
        """The error where what waits leaves no room below ``limit``.

        Args:
            waiting: how many wait.
            limit: how many may.
            kind: of what, in the plural.
        """
        found, expected = f"{waiting} {kind} waiting", f"fewer than {limit}"
        return cls("queue", found=found, expected=expected, fix="try again later")


class EngineStopped(RequestError):
    """The engine is closed or has failed."""

    status = 503
    kind = "server_error"
    code = "engine_stopped"
