"""Options of ``ziggurat serve``, by what they are about: the server, the model, the bundles."""

import dataclasses
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from ziggurat.cli import options
from ziggurat.core import config
from ziggurat.core.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ziggurat.serve.app import ServicePart
    from ziggurat.serve.server import Server
    from ziggurat.serve.tls import Tls

MIB = 2**20
_TOOL_CALL_PARSERS = "ziggurat.serve.llm.tool_parsers:TOOL_CALL_PARSERS"
_REASONING_PARSERS = "ziggurat.serve.llm.reasoning_parsers:REASONING_PARSERS"
KEY_VARIABLE = "ZIGGURAT_API_KEY"
ADMIN_KEY_VARIABLE = "ZIGGURAT_ADMIN_KEY"


@config.node
class ServerOptions:
    """Options about the server, whatever it serves."""

    host: str = "127.0.0.1"
    """Interface to listen on."""
    port: int = 8000
    """0 takes a free one."""
    api_key: tuple[str, ...] = ()
    """Token that requests must bear; several may be given. Default the environment variable
    ZIGGURAT_API_KEY. /health, /ready and /metrics need none. Keys take turns, and share no cached
    prefixes."""
    admin_key: tuple[str, ...] = ()
    """Token of requests that load or unload a repository's models; it opens the rest too. Default
    the environment variable ZIGGURAT_ADMIN_KEY."""
    tls_cert: str | None = None
    """Certificate (PEM, with its chain): HTTP and gRPC are served over TLS."""
    tls_key: str | None = None
    """The certificate's key (PEM, without a password)."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages of these origins may ask, such as https://chat.example; "*": all pages."""
    access_log: bool = False
    """Write one line of JSON for each request to standard error."""
    drain_seconds: int = 60
    """How long requests may take to finish after SIGTERM."""


@config.node
class ModelOptions:
    """Options about the language model, the encoder of texts or the model of speech."""

    name: str = ""
    """Name of the model in requests; default the name of its file or directory."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and matmuls."""
    mesh: str | None = None
    """Devices over which a language model is sharded, by mesh axis, such as tensor=2 or
    tensor=2,expert=2; one axis may be -1, all that remain. Default one device."""
    warm_only: bool = False
    """Compile into the compile cache and end."""
    embedder: str | None = None
    """Serve this encoder of texts beside the model, by the name of its directory."""
    generation_config: Literal["model", "none"] = "model"
    """Take sampling parameters such as temperature and top_p from the model's
    generation_config.json where a request gives none."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    """Form of a message's content in chat templates: text (string), a list of parts (openai), or
    whichever the template shows."""
    special_tokens: Literal["template", "none", "all"] = "template"
    """Where text such as <|im_end|> becomes a special token: in what the chat template adds and in
    prompts of /v1/completions (template), in the former only (none), or also in what messages say
    (all)."""
    tool_call_parser: Annotated[str, options.Names(_TOOL_CALL_PARSERS, "auto")] = "auto"
    """Form in which the model writes tool calls; auto takes the one that its chat template
    shows."""
    reasoning_parser: Annotated[str, options.Names(_REASONING_PARSERS, "auto", "none")] = "auto"
    """Form in which the model writes its reasoning, which answers show apart from the text; auto
    takes the one that its chat template shows, none leaves it in the text."""
    extra_fields: Literal["refuse", "ignore"] = "refuse"
    """Treatment of request fields that are unknown or not applied."""
    image_root: str | None = None
    """Messages may name pictures' files under this directory; default data URIs alone. Nothing is
    fetched from elsewhere."""
    max_images: int = 8
    """Most pictures of a request."""

    def __post_init__(self):
        options.check_name(self, "tool_call_parser")
        options.check_name(self, "reasoning_parser")


@config.node
class BundleOptions:
    """Options about a repository of bundles."""

    repository: str | None = None
    """Serve these bundles beside the model."""
    grpc_port: int | None = None
    """Serve the repository over gRPC too; 0 takes a free port."""
    model_control: Literal["none", "explicit"] = "none"
    """Explicit: requests may load and unload the repository's models."""
    load: tuple[str, ...] = ()
    """Models of the repository to load at start; default all."""
    devices: int | None = None
    """Devices of this machine that run bundles; default one."""
    max_body_mib: int | None = None
    """Largest request to a bundle (MiB); default 64."""
    untrusted: bool = False
    """Load every bundle in a child process first, so that a crash is its error alone; bundles that
    requests load are in any case."""
    custom_calls: tuple[str, ...] = ()
    """Custom calls, by name or pattern, that bundles may make besides XLA's own."""

    @property
    def settings(self) -> dict[str, object]:
        """Settings of the repository that were given."""
        body = self.max_body_mib
        settings = {
            "model_control": "" if self.model_control == "none" else self.model_control,
            "load": self.load,
            "devices": self.devices,
            "max_body": body and body * MIB,
            "memory": body and max(1024, 16 * body) * MIB,
            "untrusted": self.untrusted,
            "custom_calls": self.custom_calls,
        }
        return {key: value for key, value in settings.items() if value}


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Checked options of the server: keys, certificate and origins were looked at."""

    host: str
    port: int
    keys: tuple[str, ...]
    admin_keys: tuple[str, ...]
    tls: "Tls | None"
    origins: tuple[str, ...]
    access_log: Callable[[str], None] | None
    drain_seconds: int

    @classmethod
    def of(cls, given: ServerOptions) -> "ServerSettings":
        """Settings of these options.

        Raises:
            ConfigError: an option is wrong, or one of two that belong together is missing.
            ServeError: certificate and key cannot be used.
        """
        if given.drain_seconds < 0:
            raise ConfigError("--drain-seconds", found=given.drain_seconds, expected="0 or more")
        return cls(
            given.host,
            given.port,
            _keys(given.api_key, "--api-key", KEY_VARIABLE),
            _keys(given.admin_key, "--admin-key", ADMIN_KEY_VARIABLE),
            _tls(given.tls_cert, given.tls_key),
            _origins(given.allowed_origins),
            _log if given.access_log else None,
            given.drain_seconds,
        )

    def server(
        self, parts: list["ServicePart"], listening: socket.socket, registry: "CollectorRegistry"
    ) -> "Server":
        """The server of some parts, on a bound socket."""
        from ziggurat.serve.server import Server

        return Server(
            parts,
            listening,
            registry,
            drain_seconds=self.drain_seconds,
            keys=self.keys,
            admin_keys=self.admin_keys,
            allowed_origins=self.origins,
            access_log=self.access_log,
            tls=self.tls,
        )


def _tls(certificate: str | None, key: str | None) -> "Tls | None":
    """Certificate and key of the server, read once so that a wrong one is told before models load.

    Raises:
        ConfigError: one without the other.
        ServeError: they cannot be used.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        given = "--tls-key" if certificate is None else "--tls-cert"
        other = "--tls-cert" if certificate is None else "--tls-key"
        raise ConfigError(given, found=f"no {other}", expected="both, or none")
    from ziggurat.serve.tls import Tls

    found = Tls(Path(certificate), Path(key))
    found.read()
    return found


def _keys(given: Sequence[str], option: str, variable: str) -> tuple[str, ...]:
    """The keys to ask for: those given, or the environment's."""
    keys = tuple(given) or tuple(key for key in [os.environ.get(variable, "")] if key)
    if not all(key.isascii() and key.isprintable() and key and " " not in key for key in keys):
        raise ConfigError(option, found="a key", expected="visible ASCII, as headers carry it")
    return keys


def _origins(given: Sequence[str]) -> tuple[str, ...]:
    """The origins that browsers may ask from, as they write them in the header ``Origin``."""
    for origin in given:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            expected = 'an origin such as https://chat.example, without a path, or "*"'
            raise ConfigError("--allowed-origins", found=origin, expected=expected)
    return tuple(given)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
