"""All hostile clients at once: the server answers each, and others beside them, within bounds."""

import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serve import hostile_llm, hostile_load, resident

pytestmark = pytest.mark.slow
ROUNDS = 2
BUDGET = 2**29
MORE = 600 * 2**20
"""Bytes that the server may take besides what it has, for 15 clients of up to 8 MiB a request."""


def probe(address, stop, answers):
    """Ask for liveness until told to stop."""
    while not stop.is_set():
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/health")
        answers.append(connection.getresponse().status)
        connection.close()
        time.sleep(0.02)


def gauges(address):
    """The server's metrics without labels of their own, by name."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/metrics")
    families = text_string_to_metric_families(connection.getresponse().read().decode())
    found = {sample.name: sample.value for family in families for sample in family.samples}
    connection.close()
    return found


def busy(address):
    """Whether a request runs or waits, or holds blocks of the cache."""
    now = gauges(address)
    names = "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"
    return any(now[f"vllm:{name}"] for name in names)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The process id and the address of a server that has nothing of these tests in its memory."""
    root = hostile_load.repository(tmp_path_factory.mktemp("hostile"))
    with hostile_load.running(root, 2**23, BUDGET, "", {}) as (process, (web, _)):
        yield process.pid, web


def test_hostile_clients_harm_nobody(server):
    pid, address = server
    hostile_llm.text(address, prompt="warm up")
    with resident.Memory(pid) as before:
        time.sleep(1)
    answers, stop = [], threading.Event()
    watch = threading.Thread(target=probe, args=(address, stop, answers))
    watch.start()
    with ThreadPoolExecutor(len(hostile_llm.CLIENTS)) as pool, resident.Memory(pid) as now:
        for _ in range(ROUNDS):
            running = {
                name: pool.submit(client, address) for name, client in hostile_llm.CLIENTS.items()
            }
            good = hostile_llm.text(address, prompt="good", max_tokens=4)
            assert good in (200, 429)
            for name, each in running.items():
                assert all(0 < status < 500 for status in each.result()), (name, each.result())
    stop.set()
    watch.join()
    assert len(answers) > ROUNDS
    assert set(answers) == {200}
    assert now.most - before.most < MORE
    end = time.monotonic() + 120
    while busy(address):
        assert time.monotonic() < end, gauges(address)
        time.sleep(0.05)
    assert hostile_llm.text(address, prompt="after") == 200
