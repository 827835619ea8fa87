"""The operations that the HTTP and the gRPC front share: inference is theirs, the rest is here.

Below both fronts: a repository, the threads that run it, the budget of requests under way, and the
errors' status and text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from ziggurat import __version__
from ziggurat.core.errors import ZigguratError
from ziggurat.core.json_types import JsonObject
from ziggurat.serve.errors import RequestError
from ziggurat.serve.http import describe_for
from ziggurat.serve.memory import RequestMemory
from ziggurat.serve.predict.batching import BatchScheduler
from ziggurat.serve.predict.config import PredictConfig
from ziggurat.serve.predict.decoder import DecoderPool
from ziggurat.serve.predict.repository import Repository, refuse_load_parameters

T = TypeVar("T", bound="Operations")
NAME = "ziggurat"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
)


class ControlRefused(RequestError):
    """Error: loading and unloading are disabled."""

    fix = "start the server with --model-control explicit"


def describe(error: Exception) -> tuple[int, str]:
    """HTTP status and text for an exception that a handler raised.

    What a bundle or a program refuses is the request's fault: 400.
    """
    if isinstance(error, ZigguratError) and not isinstance(error, RequestError):
        return 400, str(error).encode("utf-8", "replace").decode()
    status, body = describe_for("/v2", error)
    return status, body["error"]


class Operations:
    """Operations of a repository, behind HTTP and gRPC; close it, or use it in a ``with`` block.

    Args:
        path: the repository's directory.
        settings: the server's.
        draining: whether the server is about to end; readiness then says no.

    Raises:
        ServeError: there is no such directory, or a model that the settings name is not there.
    """

    def __init__(
        self,
        path: Path,
        settings: PredictConfig | None = None,
        draining: Callable[[], bool] = lambda: False,
    ):
        self.settings = settings or PredictConfig()
        self.draining = draining
        self.scheduler = BatchScheduler(self.settings.devices)
        most = self.settings.memory
        self.decoder = DecoderPool(self.settings.max_body, most)
        self.front_bytes = max(3 * self.settings.max_body, most // 4)
        """Bytes that messages may take in the gRPC front, while they arrive."""
        rest = most - self.decoder.bytes - self.front_bytes
        self.memory = RequestMemory(self.settings.max_body, rest)
        """The bytes of all requests under way."""
        try:
            self.repository = Repository(path, self.scheduler, self.settings)
            self.failed = self.repository.load_all()
            """Models that could not be loaded at start, with the reasons."""
        except BaseException:
            self.scheduler.close()
            self.decoder.close()
            raise

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; waiting requests are refused."""
        self.repository.close()
        self.scheduler.close()
        self.decoder.close()

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return not self.draining()

    def server_metadata(self) -> JsonObject:
        """Name, version and extensions of the server."""
        return {"name": NAME, "version": __version__, "extensions": list(EXTENSIONS)}

    def statistics(self, name: str = "", number: str = "") -> list[JsonObject]:
        """Entries of the statistics extension.

        Raises:
            UnknownModel: a name or number is given and not served.
        """
        return [
            {"name": v.model, "version": str(v.number), **v.statistics.plain()}
            for v in self.repository.serving(name, number)
        ]

    def index(self, ready: bool) -> list[dict[str, str]]:
        """The repository's index, as both fronts answer it."""
        return [
            {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
            for e in self.repository.index(ready)
        ]

    async def load(self, name: str, parameters: JsonObject) -> None:
        """Load or reload a model, off the event loop.

        Raises:
            ServeError: loading is off, or it fails; what served before still does.
        """
        self._check_control()
        refuse_load_parameters(parameters)
        await run_in_threadpool(self.repository.load, name, True)

    async def unload(self, name: str, parameters: JsonObject) -> None:
        """Unload a model, off the event loop.

        Raises:
            ServeError: unloading is off, or the model is not served.
        """
        self._check_control()
        for key, value in parameters.items():
            if key != "unload_dependents" or type(value) is not bool:
                raise RequestError(
                    f"unload: parameter {key[:80]}",
                    found=repr(value)[:80],
                    expected="unload_dependents: true or false",
                    param=key[:80],
                )
        await run_in_threadpool(self.repository.unload, name)

    def _check_control(self) -> None:
        if self.settings.model_control != "explicit":
            raise ControlRefused(
                "loading and unloading", found="off", expected="on", fix=ControlRefused.fix
            )
