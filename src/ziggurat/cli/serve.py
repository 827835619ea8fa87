"""``ziggurat serve``: a model behind OpenAI's API, bundles behind KServe v2, or both."""

import contextlib
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from ziggurat.cli import console, options, serve_embedder, serve_repository
from ziggurat.core import hub
from ziggurat.core.errors import ConfigError, ZigguratError
from ziggurat.serve.llm.settings import EngineConfig

M = TypeVar("M")
KEY_VARIABLE = "ZIGGURAT_API_KEY"
ADMIN_KEY_VARIABLE = "ZIGGURAT_ADMIN_KEY"


def main(args: list[str]) -> int:
    """Run ``ziggurat serve``."""
    example = (
        "ziggurat serve runs/tiny-python --port 8000 --max-running 32 --api-key sesame\n"
        "  curl http://127.0.0.1:8000/v1/completions -H 'authorization: Bearer sesame' \\\n"
        '    -d \'{"model": "tiny-python", "prompt": "def add(", "max_tokens": 32}\'\n'
        "  ziggurat serve REPOSITORY --grpc-port 8001"
    )
    return console.run(serve, args, "ziggurat serve", example)


@options.spread(EngineConfig, "limits")
def serve(
    model: str,
    /,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str = "",
    warm_only: bool = False,
    compute: Literal["float32", "bfloat16"] = "float32",
    embedder: str | None = None,
    repository: str | None = None,
    grpc_port: int | None = None,
    model_control: Literal["none", "explicit"] = "none",
    load: tuple[str, ...] = (),
    devices: int | None = None,
    max_body_mib: int | None = None,
    api_key: tuple[str, ...] = (),
    admin_key: tuple[str, ...] = (),
    tls_cert: str | None = None,
    tls_key: str | None = None,
    untrusted: bool = False,
    custom_calls: tuple[str, ...] = (),
    allowed_origins: tuple[str, ...] = (),
    generation_config: Literal["model", "none"] = "model",
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto",
    special_tokens: Literal["template", "none", "all"] = "template",
    extra_fields: Literal["refuse", "ignore"] = "refuse",
    access_log: bool = False,
    drain_seconds: int = 60,
    *,
    limits: EngineConfig,
) -> int:
    """Serve a model as OpenAI does, a repository of bundles as KServe v2 does, or both, until
    Ctrl-C or SIGTERM.

    /v1/chat/completions (tools, JSON schema), /v1/completions, /v1/embeddings, /v1/models,
    /tokenize, /detokenize, /health, /ready, /version, /metrics. A field that is not applied is
    refused unless --extra-fields ignore.
    A repository holds MODEL/VERSION/ bundles (ziggurat bundle) and is served below /v2.
    Without a key anyone who reaches the port may ask.

    Args:
        model: a run, a checkpoint step, a Hugging Face directory, a GGUF file, an encoder of texts
            (BERT, MiniLM), or a repository.
        host: interface to listen on.
        port: 0 takes a free one.
        name: what requests call the model; default the name of its file or directory.
        warm_only: compile into the compile cache and end.
        compute: type of weights and matmuls.
        embedder: serve this encoder of texts beside the model, by the name of its directory.
        repository: serve these bundles beside the model.
        grpc_port: serve the repository over gRPC too; 0 takes a free port.
        model_control: explicit: requests may load and unload the repository's models.
        load: models of the repository to load at start; default all.
        devices: devices of this machine that run bundles; default one.
        max_body_mib: largest request to a bundle (MiB); default 64.
        api_key: what requests must bear as token; several may be given. Default the environment
            variable ZIGGURAT_API_KEY. /health, /ready and /metrics need none. Keys take turns, and
            share no cached prefixes.
        admin_key: what requests that load or unload a repository's models must bear instead; it
            opens the rest too. Default the environment variable ZIGGURAT_ADMIN_KEY.
        tls_cert: certificate (PEM, with its chain): HTTP and gRPC are served over TLS.
        tls_key: the certificate's key (PEM, without a password).
        untrusted: load every bundle in a child process first, so that a crash is its error alone;
            bundles that requests load are in any case.
        custom_calls: custom calls, by name or pattern, that bundles may make besides XLA's own.
        allowed_origins: web pages of these origins may ask, such as https://chat.example; "*":
            all pages.
        generation_config: take temperature, top_p, top_k, min_p and repetition_penalty from the
            model's generation_config.json where a request gives none.
        chat_template_content_format: what chat templates get as a message's content: text
            (string), a list of parts (openai), or whichever the template shows.
        special_tokens: where text such as <|im_end|> becomes a special token: in what the chat
            template adds and in prompts of /v1/completions (template), in the former only (none),
            or also in what messages say (all).
        extra_fields: what becomes of request fields that are unknown or not applied.
        access_log: write one line of JSON for each request to standard error.
        drain_seconds: how long requests may take to finish after SIGTERM.
        limits: of the engine.
    """
    if drain_seconds < 0:
        raise ConfigError("--drain-seconds", found=drain_seconds, expected="0 or more")
    if warm_only and limits.compile_cache is None:
        expected = "a directory to compile into"
        raise ConfigError("--warm-only", found="no --compile-cache", expected=expected)
    model = str(hub.local(model))
    embedder = None if embedder is None else str(hub.local(embedder))
    admin_keys = _keys(admin_key, "--admin-key", ADMIN_KEY_VARIABLE)
    tls = serve_repository.tls(tls_cert, tls_key)
    keys, origins = _keys(api_key), _origins(allowed_origins)
    say = functools.partial(console.output().print, markup=False, highlight=False, soft_wrap=True)
    log = _log if access_log else None
    of_the_model = {
        **dataclasses.asdict(limits),
        "warm_only": warm_only,
        "embedder": embedder,
        "generation_config": generation_config,
        "chat_template_content_format": chat_template_content_format,
        "special_tokens": special_tokens,
        "extra_fields": extra_fields,
    }
    bundles = serve_repository.asked(
        model,
        repository,
        grpc_port,
        {
            "model_control": "" if model_control == "none" else model_control,
            "load": load,
            "devices": devices,
            "max_body": max_body_mib and max_body_mib * serve_repository.MIB,
            "memory": max_body_mib and max(1024, 16 * max_body_mib) * serve_repository.MIB,
            "untrusted": untrusted,
            "custom_calls": custom_calls,
        },
    )
    if bundles is not None and bundles.alone:
        given = {**of_the_model, "name": name, "compute": compute}
        serve_repository.refuse_model_options(given, serve)
        serve_repository.serve_alone(
            bundles, host, port, keys, log, drain_seconds, say, admin_keys, tls, origins
        )
        return 0
    from prometheus_client import CollectorRegistry

    from ziggurat.nn.precision import Precision
    from ziggurat.serve.composition import Generator, openai_parts
    from ziggurat.serve.llm import LLM
    from ziggurat.serve.llm.policy import RequestPolicy
    from ziggurat.serve.server import Server, bind

    precision, embeds = Precision(compute, compute), serve_embedder.is_encoder(model)
    if embeds:
        serve_repository.refuse_model_options(of_the_model, serve, "an encoder of texts")
    with contextlib.ExitStack() as closing:
        listening = closing.enter_context(contextlib.closing(bind(host, port)))
        found = _Loaded(alone=embedder is None and bundles is None)
        llm = None
        if not embeds:
            llm = found.model(
                lambda: closing.enter_context(LLM(model, limits, precision=precision))
            )
        predict = closing.enter_context(serve_repository.opened(bundles, host, say))
        encoder = found.model(
            lambda: serve_embedder.opened(model if embeds else embedder, name, embeds, precision)
        )
        found.check(llm, encoder, predict)
        generator = None
        if llm is not None:
            policy = RequestPolicy(
                content_format=chat_template_content_format,
                special_tokens=special_tokens,
                extra_fields=extra_fields,
                sampling=llm.sampling_defaults if generation_config == "model" else {},
            )
            generator = Generator(name or llm.name, llm.engine, policy)
            _tell_sampling(policy.sampling, say)
        registry = CollectorRegistry()
        parts = openai_parts(registry, generator, encoder)
        parts += serve_repository.parts(
            predict, bundles, registry, host, keys, drain_seconds, admin_keys, tls
        )
        server = Server(
            parts,
            listening,
            registry,
            drain_seconds=drain_seconds,
            keys=keys,
            admin_keys=admin_keys,
            allowed_origins=origins,
            access_log=log,
            tls=tls,
        )
        if generator is not None:
            say(f"{generator.name}: context {generator.engine.max_length} tokens, compiling")
            with console.progress("compiling") as told:
                done = generator.engine.warm_up(told)
            kept = f", {done.loaded} of them from the cache" if limits.compile_cache else ""
            say(f"compiled {done.programs} programs in {done.seconds:.1f} s{kept}")
        serve_embedder.warm_up(encoder, say)
        if not warm_only:
            names = [part.name for part in (generator, encoder) if part is not None]
            if names:
                say(f"serving {' and '.join(names)} on {server.url}/v1")
            serve_repository.tell(predict, server, say)
            server.serve_forever()
    return 0


def _keys(
    given: Sequence[str], option: str = "--api-key", variable: str = KEY_VARIABLE
) -> tuple[str, ...]:
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


class _Loaded:
    """Loads several models of which each may fail without the others.

    Args:
        alone: whether there is only one; then its error is the command's.
    """

    def __init__(self, alone: bool):
        self._alone, self._errors = alone, list[ZigguratError]()

    def model(self, load: Callable[[], M]) -> M | None:
        """The model, or ``None`` if it cannot be loaded and others are to be served."""
        try:
            return load()
        except ConfigError:  # what was asked for is wrong, not a model
            raise
        except ZigguratError as error:
            if self._alone:
                raise
            self._errors.append(error)
            console.print_error(f"{error}; it is not served")
            return None

    def check(self, *models: object) -> None:
        """End the command if there is nothing to serve."""
        if self._errors and all(model is None for model in models):
            raise self._errors[0]


def _tell_sampling(defaults: Mapping[str, object], say: Callable[[str], None]) -> None:
    if defaults:
        told = ", ".join(f"{name} {value}" for name, value in defaults.items())
        say(f"sampling unless a request says otherwise: {told} (generation_config.json)")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
