"""A repository of three small models, made once, and a server of it on free ports."""

import contextlib
import dataclasses
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from ziggurat.serve.predict import Predict, PredictConfig, export
from ziggurat.serve.server import Server, bind

TYPES = ("BOOL", "UINT8", "INT8", "INT16", "INT32", "UINT32", "FP16", "FP32", "BF16")
SETTINGS = """
[batching]
max_batch_size = 8
max_queue_delay_us = 1000
"""


@pytest.fixture
def users_promotion():
    """JAX's own promotion of ranks and types: a user's function may rely on it."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def classify(params, x, np=jnp):
    """Two layers; probabilities and the most likely class."""
    hidden = np.maximum(x @ params["one"]["kernel"] + params["one"]["bias"][None], 0)
    logits = hidden @ params["two"]["kernel"]
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), logits.argmax(-1)


def encode(params, tokens, mask, np=jnp):
    """The mean of the tokens' vectors, with their places, where the mask is 1."""
    weight = mask[..., None].astype(np.float32)
    # A table of eight places: the program knows from its sizes that no more will come.
    vectors = params["table"][tokens] + params["places"][None, : tokens.shape[1]]
    return {"embedding": (vectors * weight).sum(1) / np.maximum(weight.sum(1), 1)}


def weights():
    draw = np.random.default_rng(0)
    return {
        "one": {
            "kernel": draw.standard_normal((16, 8)).astype(np.float32),
            "bias": draw.standard_normal(8).astype(np.float32),
        },
        "two": {"kernel": draw.standard_normal((8, 3)).astype(np.float32)},
    }


def table():
    draw = np.random.default_rng(1)
    shapes = {"table": (50, 4), "places": (8, 4)}
    return {name: draw.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The repository as it was written; copy it before changing it."""
    root = tmp_path_factory.mktemp("repository")
    params = weights()
    export(classify, params, "x:FP32[b,16] -> probabilities label", root / "digits" / "1")
    params["two"]["kernel"] *= 2
    export(classify, params, "x:FP32[b,16] -> probabilities label", root / "digits" / "2")
    export(
        encode,
        table(),
        "tokens:INT32[b,t] mask:INT32[b,t] -> embedding",
        root / "encoder" / "1",
        sizes={"t": (4, 8)},
    )
    inputs = " ".join(f"{kind.lower()}:{kind}[b,2]" for kind in TYPES)
    outputs = " ".join(f"{kind.lower()}_out" for kind in TYPES)
    export(lambda *given: given, None, f"{inputs} -> {outputs}", root / "echo" / "1")
    for name in ("digits", "encoder", "echo"):
        (root / name / "model.toml").write_text(SETTINGS)
    text = 'versions = {kind = "all"}\n' + SETTINGS
    (root / "digits" / "model.toml").write_text(text)
    return root


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the repository that a test may change."""
    return shutil.copytree(made, tmp_path / "models")


@dataclasses.dataclass
class Running:
    """A server in a thread of this process."""

    predict: Predict
    http: str
    grpc: str

    @property
    def url(self):
        return f"http://{self.http}"


@contextlib.contextmanager
def serving(root, keys=(), admin_keys=(), tls=None, **settings):
    """Serve a repository over HTTP and gRPC."""
    with Predict(root, PredictConfig(**settings)) as predict:
        registry = CollectorRegistry()
        predict.register(registry)
        parts = [predict.part("127.0.0.1:0", keys, drain_seconds=2, admin_keys=admin_keys, tls=tls)]
        with contextlib.closing(bind("127.0.0.1", 0)) as listening:
            server = Server(
                parts,
                listening,
                registry,
                drain_seconds=2,
                keys=keys,
                admin_keys=admin_keys,
                tls=tls,
            )
            predict.draining = lambda: server.should_exit
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                while not server.started:
                    assert thread.is_alive(), "the server ended before it had started"
                    thread.join(0.01)
                address = server.url.partition("://")[2]
                yield Running(predict, address, f"127.0.0.1:{predict.grpc.port}")
            finally:
                server.stop()
                thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(made):
    with serving(made, model_control="explicit", max_body=2**20) as running:
        yield running
