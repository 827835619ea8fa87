"""``ziggurat.serve``: a language model behind OpenAI's API, from Python."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from ziggurat.core import config
from ziggurat.core.json_types import JsonMapping
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.nn.precision import Precision
from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.llm import LLM, EngineConfig
from ziggurat.serve.llm.devices import MeshChoice
from ziggurat.serve.llm.policy import RequestPolicy
from ziggurat.serve.server import Server, bind


def serve(
    model: str | Path | Pretrained,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str = "",
    engine: EngineConfig | JsonMapping | None = None,
    compute: Literal["float32", "bfloat16"] = "float32",
    api_keys: Sequence[str] = (),
    mesh: MeshChoice | None = None,
) -> None:
    """Serve a language model as OpenAI does, until Ctrl-C or SIGTERM.

    Encoders and repositories of bundles are served by the command ``ziggurat serve``.

    Args:
        model: a path as for :func:`ziggurat.load`, or what it returned.
        host: interface to listen on.
        port: 0 takes a free one.
        name: what requests call the model; default the name of its file or directory.
        engine: limits of the engine.
        compute: type of weights and activations, for a path.
        api_keys: what requests must bear as token; default none is asked for.
        mesh: devices to shard the model over, as ``"tensor=2"`` or ``{"tensor": 2}``; default the
            first one alone.

    Raises:
        ServeError: the port is in use.
        ModelError, CheckpointError: the model cannot be read.
        ShardingError: the model does not divide over the mesh.
    """
    with opened(
        model,
        host=host,
        port=port,
        name=name,
        engine=engine,
        compute=compute,
        api_keys=api_keys,
        mesh=mesh,
    ) as server:
        server.serve_forever()


@contextlib.contextmanager
def serving(model: str | Path | Pretrained, **options: Any) -> Iterator[str]:
    """Run a server in a thread of this process during the block; gives its URL, without ``/v1``.

    Args:
        model: as for :func:`serve`, whose options it takes; the default port is a free one.
    """
    with opened(model, **{"port": 0, **options}) as server:
        thread = threading.Thread(target=server.serve_forever, name="server", daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def opened(
    model: str | Path | Pretrained,
    *,
    host: str,
    port: int,
    name: str = "",
    engine: EngineConfig | JsonMapping | None = None,
    compute: Literal["float32", "bfloat16"] = "float32",
    api_keys: Sequence[str] = (),
    mesh: MeshChoice | None = None,
) -> Iterator[Server]:
    """Open a server with everything compiled; the caller runs it."""
    if not isinstance(engine, EngineConfig):
        engine = config.from_plain(EngineConfig, engine or {}, "engine")
    with (
        contextlib.closing(bind(host, port)) as listening,
        LLM(model, engine, precision=Precision(compute, compute), mesh=mesh) as llm,
    ):
        registry, policy = CollectorRegistry(), RequestPolicy(sampling=llm.sampling_defaults)
        parts = openai_parts(registry, Generator(name or llm.name, llm.engine, policy))
        server = Server(parts, listening, registry, keys=api_keys)
        llm.engine.warm_up()
        yield server
