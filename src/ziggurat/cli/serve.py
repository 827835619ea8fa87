"""``ziggurat serve``: a model behind OpenAI's API, bundles behind KServe v2, or both."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from ziggurat.cli import console, options, serve_embedder, serve_repository, serve_speech
from ziggurat.cli.serve_options import BundleOptions, ModelOptions, ServerOptions, ServerSettings
from ziggurat.core import hub
from ziggurat.core.errors import ConfigError, ShardingError, ZigguratError
from ziggurat.serve.llm.settings import EngineConfig

if TYPE_CHECKING:
    from ziggurat.serve.composition import Embedder, Generator, Recognizer
    from ziggurat.serve.predict import Predict

M = TypeVar("M")
Say = Callable[[str], None]
Kind = Literal["a language model", "an encoder of texts", "a model of speech"]
"""Kinds of models that are served as OpenAI does."""


def main(args: list[str]) -> int:
    """Run ``ziggurat serve``."""
    example = (
        "ziggurat serve runs/tiny-python --port 8000 --max-running 32 --api-key sesame\n"
        "  curl http://127.0.0.1:8000/v1/completions -H 'authorization: Bearer sesame' \\\n"
        '    -d \'{"model": "tiny-python", "prompt": "def add(", "max_tokens": 32}\'\n'
        "  ziggurat serve MODEL --mesh tensor=4\n"
        "  ziggurat serve REPOSITORY --grpc-port 8001"
    )
    return console.run(serve, args, "ziggurat serve", example)


@options.spread(EngineConfig, "limits")
@options.spread(BundleOptions, "bundles")
@options.spread(ModelOptions, "text")
@options.spread(ServerOptions, "server")
def serve(
    model: str,
    /,
    *,
    server: ServerOptions,
    text: ModelOptions,
    bundles: BundleOptions,
    limits: EngineConfig,
) -> int:
    """Serve a model as OpenAI does, a repository of bundles as KServe v2 does, or both, until
    Ctrl-C or SIGTERM.

    /v1/chat/completions (tools, JSON schema), /v1/responses, /v1/completions, /v1/embeddings,
    /v1/audio/transcriptions, /v1/audio/translations, /v1/models, /tokenize, /detokenize, /health,
    /ready, /version, /metrics. A field that is not applied is
    refused unless --extra-fields ignore.
    A repository holds MODEL/VERSION/ bundles (ziggurat bundle) and is served below /v2.
    Without a key anyone who reaches the port may ask.

    Args:
        model: a run, a checkpoint step, a Hugging Face directory, a GGUF file, an encoder of texts
            (BERT, MiniLM), a model of speech (Whisper), or a repository.
        server: its address, keys and certificate.
        text: how a language model or encoder is served.
        bundles: which repository is served, and how.
        limits: of the engine.
    """
    settings = ServerSettings.of(server)
    if text.warm_only and limits.compile_cache is None:
        expected = "a directory to compile into"
        raise ConfigError("--warm-only", found="no --compile-cache", expected=expected)
    model = str(hub.local(model))
    if text.embedder is not None:
        text = dataclasses.replace(text, embedder=str(hub.local(text.embedder)))
    say = functools.partial(console.output().print, markup=False, highlight=False, soft_wrap=True)
    repository = serve_repository.asked(model, bundles)
    given = {**dataclasses.asdict(limits), **dataclasses.asdict(text)}
    if repository is not None and repository.alone:
        serve_repository.refuse_model_options(given, serve)
        serve_repository.serve_alone(repository, settings, say)
        return 0
    kind = _kind_of(model)
    if kind != "a language model":
        of_engine = {key: value for key, value in given.items() if key not in ("name", "compute")}
        serve_repository.refuse_model_options(of_engine, serve, kind)
    _serve_models(model, kind, settings, text, repository, limits, say)
    return 0


def _kind_of(model: str) -> Kind:
    if serve_embedder.is_encoder(model):
        return "an encoder of texts"
    return "a model of speech" if serve_speech.is_speech(model) else "a language model"


def _serve_models(
    model: str,
    kind: Kind,
    settings: ServerSettings,
    text: ModelOptions,
    repository: serve_repository.RepositoryOptions | None,
    limits: EngineConfig,
    say: Say,
) -> None:
    """Load a model and what is served beside it; serve until a signal."""
    from prometheus_client import CollectorRegistry

    from ziggurat.serve.composition import openai_parts
    from ziggurat.serve.server import bind

    with contextlib.ExitStack() as closing:
        listening = closing.enter_context(contextlib.closing(bind(settings.host, settings.port)))
        loaded = _load(model, kind, text, repository, limits, settings.host, closing, say)
        registry = CollectorRegistry()
        parts = openai_parts(
            registry, loaded.generator, loaded.encoder, recognizer=loaded.recognizer
        )
        parts += serve_repository.parts(loaded.predict, repository, registry, settings)
        server = settings.server(parts, listening, registry)
        _warm_up(loaded, limits, say)
        if text.warm_only:
            return
        models = (loaded.generator, loaded.encoder, loaded.recognizer)
        if names := [one.name for one in models if one is not None]:
            say(f"serving {' and '.join(names)} on {server.url}/v1")
        serve_repository.tell(loaded.predict, server, say)
        server.serve_forever()


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """Loaded models; None for what was not asked for, or could not be loaded beside others."""

    generator: "Generator | None"
    encoder: "Embedder | None"
    recognizer: "Recognizer | None"
    predict: "Predict | None"


def _load(
    model: str,
    kind: Kind,
    text: ModelOptions,
    repository: serve_repository.RepositoryOptions | None,
    limits: EngineConfig,
    host: str,
    closing: contextlib.ExitStack,
    say: Say,
) -> _Loaded:
    from ziggurat.nn.precision import Precision
    from ziggurat.serve.composition import Generator
    from ziggurat.serve.llm import LLM
    from ziggurat.serve.llm.image_reader import ImageLimits
    from ziggurat.serve.llm.policy import RequestPolicy

    precision = Precision(text.compute, text.compute)
    loading = _Loading(alone=text.embedder is None and repository is None)
    llm, embeds = None, kind == "an encoder of texts"
    if kind == "a language model":
        images = ImageLimits.of(text.image_root, text.max_images)
        llm = loading.model(
            lambda: closing.enter_context(
                LLM(model, limits, precision=precision, images=images, mesh=text.mesh)
            )
        )
        if text.image_root is not None and llm is not None and llm.images is None:
            raise ConfigError(
                "--image-root", found=f"{model}, which reads no images", expected="one that does"
            )
    predict = closing.enter_context(serve_repository.opened(repository, host, say))
    encoder = loading.model(
        lambda: serve_embedder.opened(
            model if embeds else text.embedder, text.name, embeds, precision
        )
    )
    recognizer = None
    if kind == "a model of speech":
        recognizer = loading.model(lambda: serve_speech.opened(model, text.name, precision))
    loading.check(llm, encoder, recognizer, predict)
    if llm is None:
        return _Loaded(None, encoder, recognizer, predict)
    policy = RequestPolicy(
        content_format=text.chat_template_content_format,
        special_tokens=text.special_tokens,
        extra_fields=text.extra_fields,
        tool_call_parser=text.tool_call_parser,
        reasoning_parser=text.reasoning_parser,
        sampling=llm.sampling_defaults if text.generation_config == "model" else {},
    )
    if policy.sampling:
        told = ", ".join(f"{name} {value}" for name, value in policy.sampling.items())
        say(f"sampling unless a request says otherwise: {told} (generation_config.json)")
    generator = Generator(text.name or llm.name, llm.engine, policy, llm.images)
    return _Loaded(generator, encoder, None, predict)


class _Loading:
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
        except (ConfigError, ShardingError):  # what was asked for is wrong, not a model
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


def _warm_up(loaded: _Loaded, limits: EngineConfig, say: Say) -> None:
    """Compile all programs, or take them from the compile cache."""
    generator = loaded.generator
    if generator is not None:
        devices = generator.engine.devices
        where = f" on {devices} devices" if devices > 1 else ""
        say(f"{generator.name}: context {generator.engine.max_length} tokens{where}, compiling")
        with console.progress("compiling") as told:
            done = generator.engine.warm_up(told)
        kept = f", {done.loaded} of them from the cache" if limits.compile_cache else ""
        say(f"compiled {done.programs} programs in {done.seconds:.1f} s{kept}")
    serve_embedder.warm_up(loaded.encoder, say)
    serve_speech.warm_up(loaded.recognizer, say)
