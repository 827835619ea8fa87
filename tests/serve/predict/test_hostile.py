"""Hostile clients all at once, in small: what they are answered, and what it costs the others.

The full load test with its timings is ``python -m tests.serve.hostile_load``; no timing is judged
here.
"""

import numpy as np
import psutil
import pytest
from tests.serve import hostile, hostile_load, resident

from ziggurat.serve import patience
from ziggurat.serve.predict import grpc_service

SIZE = 2**21
SLOW = ("slow headers", "slow bodies", "silent connections")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from tests.serve.predict.conftest import serving

    root = hostile_load.repository(tmp_path_factory.mktemp("hostile"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "HEADER_SECONDS", 1.0)
        patch.setattr(patience, "PAUSE_SECONDS", 1.0)
        patch.setattr(grpc_service, "_STREAMS", 10)
        limits = {"max_body": SIZE + 2**20, "memory": 2**27}
        with serving(root, model_control="explicit", load=("row", "other"), **limits) as running:
            yield running


def target(server):
    return hostile.Target(
        server.http, server.grpc, size=SIZE, count=24, seconds=20.0, hostile_model="bad"
    )


@pytest.mark.slow
def test_all_at_once(server):
    """Every client gets what it may get, probes and another model's clients all get 200."""
    infer = ("POST", "/v2/models/other/infer", hostile.request())
    before = psutil.Process().memory_info().rss
    with (
        hostile_load.Watch(server.http, "GET", "/v2/health/live") as live,
        hostile_load.Watch(server.http, *infer) as other,
        resident.Memory(psutil.Process().pid) as memory,
    ):
        found = hostile_load.attack(target(server), 0.0, hostile.BUNDLE_CLIENTS)
    for name, got in found.items():
        assert set(got) <= hostile.BUNDLE_CLIENTS[name][1], name
        assert got or not hostile.BUNDLE_CLIENTS[name][1], name
    for name in SLOW:
        assert "held" not in found[name]
    assert "UNAVAILABLE" in found["idle gRPC streams"]
    assert live.times
    assert other.times
    assert (live.failed, other.failed) == (0, 0)
    assert server.predict.memory.held == 0
    assert memory.alone - before < 600 * 2**20  # the clients are in this process too


@pytest.mark.parametrize("rows", [4, 20_000])
def test_large_json_is_decoded_in_a_child_to_the_same_numbers(server, rows):
    """Flat and nested; a model takes four rows, so more are refused once they are decoded."""
    numbers = np.arange(rows * hostile.WIDTH, dtype=np.float32).reshape(rows, hostile.WIDTH)
    for values in (numbers.ravel().tolist(), numbers.tolist()):
        text = str(values).replace(" ", "")
        status = hostile.infer(target(server), hostile.request(text, rows))
        assert status == (200 if rows == 4 else 400)


def test_a_client_that_left_is_not_computed_for(server):
    version = server.predict.repository.get("row")
    before = version.statistics.plain()["inference_stats"]
    hostile.leavers(target(server))
    hostile.infer(target(server), hostile.request())
    after = version.statistics.plain()["inference_stats"]
    ended = sum(after[name]["count"] - before[name]["count"] for name in ("success", "fail"))
    assert ended <= 25
    assert version.queue.waiting == 0


def test_large_answers_are_written_in_pieces():
    from ziggurat.serve.predict import tensors

    values = np.arange(50_000, dtype=np.float32)
    assert np.array_equal(np.fromstring(tensors.to_json(values, "y")[1:-1], sep=","), values)
    assert tensors.to_json(values[:0], "y") == b"[]"
