"""All hostile clients at once: the server answers each, and others beside them, within bounds."""

import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.serve import hostile_llm

pytestmark = pytest.mark.slow
ROUNDS = 2
MORE_MIB = 600
"""What the server, and these clients in the same process, may take besides what they have."""


def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def probe(address, stop, answers):
    """Ask for liveness until told to stop."""
    while not stop.is_set():
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/health")
        answers.append(connection.getresponse().status)
        connection.close()
        time.sleep(0.02)


def test_hostile_clients_harm_nobody(server, engine):
    address = server.url.removeprefix("http://")
    hostile_llm.text(address, prompt="warm up")
    before, peak, answers, stop = resident_mib(), 0.0, [], threading.Event()
    watch = threading.Thread(target=probe, args=(address, stop, answers))
    watch.start()
    with ThreadPoolExecutor(len(hostile_llm.CLIENTS)) as pool:
        for _ in range(ROUNDS):
            running = {
                name: pool.submit(client, address) for name, client in hostile_llm.CLIENTS.items()
            }
            good = hostile_llm.text(address, prompt="good", max_tokens=4)
            assert good in (200, 429)
            while not all(each.done() for each in running.values()):
                peak = max(peak, resident_mib())
                time.sleep(0.05)
            for name, each in running.items():
                assert all(0 < status < 500 for status in each.result()), (name, each.result())
    stop.set()
    watch.join()
    assert len(answers) > ROUNDS
    assert set(answers) == {200}
    assert peak - before < MORE_MIB
    end = time.monotonic() + 120
    while engine.running or engine.waiting:
        assert time.monotonic() < end, engine.statistics()
        time.sleep(0.05)
    now = engine.statistics()
    assert now.blocks_free == now.blocks_total
    assert engine._admission._clients == {}
    assert hostile_llm.text(address, prompt="after") == 200
