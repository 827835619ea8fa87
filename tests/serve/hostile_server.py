"""A server for the load test: bundles and a language model in one process, on free ports.

    python -m tests.serve.hostile_server REPOSITORY MAX_BODY MEMORY [STACKS]

Prints where it listens, HTTP and gRPC, when it serves; after SIGTERM, how late its event loop was.
STACKS is a file that gets the stacks of all threads whenever it is.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import jax
from prometheus_client import CollectorRegistry
from tests.serve import hostile_llm
from tests.serve.lateness import Lateness

from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.serve.app import ServicePart
from ziggurat.serve.composition import Generator, openai_parts
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.predict import Predict, PredictConfig
from ziggurat.serve.server import Server, bind

TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{# calls in <tool_call> #}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)


@contextlib.contextmanager
def tiny_engine() -> Iterator[Engine]:
    """A random model of two layers that reads bytes."""
    config = LlamaConfig(
        vocab_size=257,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        max_sequence_length=256,
    )
    model, tokenizer = LanguageModel.build(config), byte_level({"eos_token": "<|end|>"})
    tokenizer.chat_templates["default"] = TEMPLATE
    settings = EngineConfig(max_sequence_length=96, max_prefill_chunk=32, max_running=4)
    with Engine(model, model.init(jax.random.key(0)), tokenizer, settings) as made:
        made.warm_up()
        yield made


@contextlib.asynccontextmanager
async def watched(lateness: Lateness) -> AsyncIterator[None]:
    """Within it the loop's lateness is measured."""
    task = asyncio.create_task(lateness.run())
    yield
    task.cancel()


def main(root: Path, max_body: int, memory: int, stacks: str = "") -> None:
    """Serve until SIGTERM."""
    lateness = Lateness(open(stacks, "a") if stacks else None)  # noqa: SIM115
    settings = PredictConfig(
        model_control="explicit", load=("row", "other"), max_body=max_body, memory=memory
    )
    registry = CollectorRegistry()
    with tiny_engine() as engine, Predict(root, settings) as predict:
        predict.register(registry)
        generator = Generator(hostile_llm.MODEL, engine)
        parts = [
            *openai_parts(registry, generator, memory=predict.memory),
            predict.part("127.0.0.1:0"),
        ]
        parts.append(ServicePart(running=lambda: watched(lateness)))
        server = Server(parts, bind("127.0.0.1", 0), registry)
        predict.started = lambda port: print(server.url[7:], f"127.0.0.1:{port}", flush=True)
        server.serve_forever()
    print(json.dumps({"beats": lateness.beats, "late": lateness.late, "worst_ms": lateness.worst}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
