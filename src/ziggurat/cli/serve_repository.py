"""The predict half of ``ziggurat serve``: a repository of bundles beside or without a model."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.cli.serve_options import BundleOptions, ServerSettings
from ziggurat.core import config
from ziggurat.core.errors import ConfigError, ServeError
from ziggurat.core.json_types import JsonMapping

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ziggurat.serve.app import ServicePart
    from ziggurat.serve.predict import Predict
    from ziggurat.serve.server import Server


@dataclasses.dataclass(frozen=True)
class RepositoryOptions:
    """Options of the command line about a model repository."""

    path: Path
    alone: bool
    """Whether no language model is served beside it."""
    grpc_port: int | None
    settings: JsonMapping


def asked(model: str, options: BundleOptions) -> RepositoryOptions | None:
    """Whether a repository is to be served, and how.

    Args:
        model: the command's first argument, which may itself be a repository.
        options: those for repositories.

    Raises:
        ConfigError: an option for repositories without one.
    """
    repository, grpc_port, given = options.repository, options.grpc_port, options.settings
    if repository is not None:
        return RepositoryOptions(Path(repository), False, grpc_port, given)
    path = Path(model)
    if (path / "manifest.json").is_file() and (path / "golden").is_dir():
        expected = "the repository that holds it, REPOSITORY/MODEL/VERSION"
        raise ServeError(f"serve {model}", found="one bundle", expected=expected)
    if path.is_dir() and (not any(path.iterdir()) or any(path.glob("*/[1-9]*/manifest.json"))):
        return RepositoryOptions(path, True, grpc_port, given)
    given.pop("memory", None)  # follows --max-body-mib
    for option, value in {"grpc_port": grpc_port, **given}.items():
        if value is not None:
            raise ConfigError(f"--{option.replace('_', '-')}", found=value,
                              expected="this option with a repository of bundles only")  # fmt: skip
    return None


def refuse_model_options(
    given: Mapping[str, object], command: Callable[..., Any], served: str = "a repository alone"
) -> None:
    """Refuse options of the language model's engine where there is none.

    Raises:
        ConfigError: one is not the command's default.
    """
    parameters = inspect.signature(command).parameters
    for option, value in given.items():
        if value != parameters[option].default:
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(flag, found=value, expected=f"no such option for {served}")


@contextlib.contextmanager
def opened(
    what: RepositoryOptions | None, host: str, say: Callable[[str], None]
) -> Iterator["Predict | None"]:
    """The repository with every model verified and compiled; None if none was asked for.

    Raises:
        ServeError: there is no such directory, or the gRPC port is in use.
    """
    if what is None:
        yield None
        return
    from ziggurat.serve.predict import Predict, PredictConfig
    from ziggurat.serve.server import bind

    if what.grpc_port is not None:
        bind(host, what.grpc_port).close()  # told before models are loaded
    settings = config.from_plain(PredictConfig, what.settings, "command line")
    say(f"{what.path}: loading bundles")
    with Predict(what.path, settings) as predict:
        for name, reason in predict.failed.items():
            say(f"{name}: not served: {reason}")
        for version in predict.repository.serving():
            signature = version.bundle.manifest.signature
            inputs, outputs = map(str, signature.inputs), map(str, signature.outputs)
            say(f"{version.model} {version.number}: {' '.join(inputs)} -> {' '.join(outputs)}")
        yield predict


def parts(
    predict: "Predict | None",
    what: RepositoryOptions | None,
    registry: "CollectorRegistry",
    settings: ServerSettings,
) -> list["ServicePart"]:
    """Routes that the repository adds to the application."""
    if predict is None or what is None:
        return []
    predict.register(registry)
    inner = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = None if what.grpc_port is None else f"{inner}:{what.grpc_port}"
    access = {"admin_keys": settings.admin_keys, "tls": settings.tls}
    return [predict.part(address, settings.keys, settings.drain_seconds, **access)]


def serve_alone(
    what: RepositoryOptions, settings: ServerSettings, say: Callable[[str], None]
) -> None:
    """Serve a repository without a language model until Ctrl-C or SIGTERM.

    Raises:
        ServeError: a port is in use.
        ModuleNotFoundError: the extra for serving is not installed.
    """
    from prometheus_client import CollectorRegistry

    from ziggurat.serve.server import bind

    registry = CollectorRegistry()
    with (
        contextlib.closing(bind(settings.host, settings.port)) as listening,
        opened(what, settings.host, say) as predict,
    ):
        served = parts(predict, what, registry, settings)
        server = settings.server(served, listening, registry)
        tell(predict, server, say)
        server.serve_forever()


def tell(predict: "Predict | None", server: "Server", say: Callable[[str], None]) -> None:
    """Say where the repository is served, and let its readiness follow the server's."""
    if predict is None:
        return
    predict.draining = lambda: server.should_exit
    predict.started = lambda port: say(f"serving gRPC on port {port}")
    say(f"serving {len(predict.repository.serving())} model versions on {server.url}/v2")
