"""What a request can be refused for, with the HTTP status and the field at fault."""

from ziggurat.core.errors import ServeError


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


class TooLarge(RequestError):
    """The body is larger than the server reads."""

    status = 413


class QueueFull(RequestError):
    """As many requests wait as the engine is willing to hold."""

    status = 429
    kind = "rate_limit_error"
    code = "queue_full"


class EngineStopped(RequestError):
    """The engine is closed or has failed."""

    status = 503
    kind = "server_error"
    code = "engine_stopped"
