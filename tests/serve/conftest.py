"""A small random model with a byte tokenizer, its engine, and a server on a free port."""

import contextlib
import threading
import time

import jax
import numpy as np
import pytest

from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.serve.llm.engine import Engine, EngineConfig

TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{# calls in <tool_call> #}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.x }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONTEXT = 96


def allowed_ids(mask):
    """Ids whose bits are set in a constraint's mask."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


@pytest.fixture(scope="session")
def tokenizer():
    made = byte_level({"eos_token": "<|end|>"})
    made.chat_templates["default"] = TEMPLATE
    return made


@pytest.fixture(scope="session")
def model():
    return LanguageModel.build(
        LlamaConfig(
            vocab_size=257,
            d_model=32,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            max_sequence_length=256,
            init_std=0.3,
        )
    )


@pytest.fixture(scope="session")
def params(model):
    return model.init(jax.random.key(0))


@pytest.fixture(scope="session")
def whole(model, params):
    """Logits ``[t, v]`` of all places of a sequence of at most 96 tokens, by one forward pass."""
    run = jax.jit(model.logits)

    def logits(tokens):
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(run(params, padded))[0, : len(tokens)]

    return logits


@pytest.fixture(scope="session")
def engine(model, params, tokenizer):
    settings = EngineConfig(max_sequence_length=CONTEXT, max_prefill_chunk=32, max_running=4)
    with Engine(model, params, tokenizer, settings) as made:
        yield made


@pytest.fixture(scope="session")
def server(engine):
    from prometheus_client import CollectorRegistry

    from ziggurat.serve.composition import Generator, openai_parts

    registry = CollectorRegistry()
    with serving(openai_parts(registry, Generator("tiny", engine)), registry) as made:
        made.monitor = engine.monitor
        yield made


@pytest.fixture(autouse=True)
def _metrics_of_the_server(request):
    """Another server of the one engine takes its figures; a test of the first gets them back."""
    if "server" in request.fixturenames:
        monitor = getattr(request.getfixturevalue("server"), "monitor", None)
        if monitor is not None:
            request.getfixturevalue("engine").monitor = monitor


@contextlib.contextmanager
def serving(parts, registry, **options):
    """A server of these parts on a free port, in a thread."""
    from ziggurat.serve.server import Server, bind

    made = Server(parts, bind("127.0.0.1", 0), registry, drain_seconds=5, **options)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    end = time.monotonic() + 60
    while not made.started:
        assert thread.is_alive(), "the server ended before it had started"
        assert time.monotonic() < end, "the server did not start within a minute"
        time.sleep(0.01)
    try:
        yield made
    finally:  # the thread would keep the whole run of the tests from ending
        made.stop()
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def client(server):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60
    ) as made:
        yield made
