"""``ziggurat serve``: a model behind OpenAI's API."""

import contextlib
import functools
from typing import Literal

from ziggurat.cli import console
from ziggurat.core import config
from ziggurat.core.errors import ConfigError, EnvironmentError


def main(args: list[str]) -> int:
    """Run ``ziggurat serve``."""
    example = (
        "ziggurat serve runs/tiny-python --port 8000\n"
        "  curl http://127.0.0.1:8000/v1/completions -H 'content-type: application/json' \\\n"
        '    -d \'{"model": "tiny-python", "prompt": "def add(", "max_tokens": 32}\''
    )
    return console.run(serve, args, "ziggurat serve", example)


def serve(
    model: str,
    /,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str = "",
    max_sequence_length: int | None = None,
    max_queue: int = 64,
    reuse_prefix: bool = False,
    compute: Literal["float32", "bfloat16"] = "float32",
    drain_seconds: int = 60,
) -> int:
    """Serve a model over HTTP as OpenAI does, until Ctrl-C or SIGTERM.

    /v1/chat/completions, /v1/completions, /v1/models, /health, /ready, /version, /metrics. A field
    that is not applied is refused, never ignored. There is no authentication: keep to loopback or
    put a proxy in front.

    Args:
        model: a run, a checkpoint step, a Hugging Face directory or a GGUF file.
        host: interface to listen on.
        port: 0 takes a free one.
        name: what requests call the model; default the name of its file or directory.
        max_sequence_length: context in tokens; default the model's, at most 8192.
        max_queue: requests that may wait; more are refused with 429.
        reuse_prefix: keep the last request's cache for a next one that begins alike.
        compute: type of weights and products.
        drain_seconds: how long requests may take to finish after SIGTERM.
    """
    if drain_seconds < 0:
        raise ConfigError("--drain-seconds", found=drain_seconds, expected="0 or more")
    from ziggurat.nn.precision import Precision

    try:
        from ziggurat.serve.llm import LLM, EngineConfig
        from ziggurat.serve.server import Server, bind
    except ModuleNotFoundError as error:
        fix = "pip install 'ziggurat[serve]'"
        raise EnvironmentError(f"package {error.name}", found="missing", fix=fix) from None
    limits = {
        "max_sequence_length": max_sequence_length,
        "max_queue": max_queue,
        "reuse_prefix": reuse_prefix,
    }
    settings = config.from_plain(EngineConfig, limits, "command line")
    say = functools.partial(console.output().print, markup=False, highlight=False, soft_wrap=True)
    with (
        contextlib.closing(bind(host, port)) as listening,
        LLM(model, settings, precision=Precision(compute, compute)) as llm,
    ):
        server = Server(llm.engine, name or llm.name, listening, drain_seconds)
        say(f"{server.name}: context {llm.engine.max_length} tokens, compiling")
        done = llm.engine.warm_up()
        say(f"compiled {done.programs} programs in {done.seconds:.1f} s")
        say(f"serving {server.name} on {server.url}/v1")
        server.serve_forever()
    return 0
