"""All hostile clients at once against a server process: liveness, memory, and another model's p99.

    python -m tests.serve.hostile_load --seconds 40

Prints one line of JSON. Expected: the liveness probe never fails and answers within 100 ms or three
times its idle time, whichever is more; memory stays within the budget and a fifth of it; another
model's p99 is within twice its idle one. Loopback only; needs about 4 GiB of memory.
"""

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from tests.serve import hostile

from ziggurat.serve.predict import export
from ziggurat.serve.predict import manifest as manifests

BUDGET = 2**30
PROGRAM = """
import sys, threading
from pathlib import Path
from prometheus_client import CollectorRegistry
from ziggurat.serve.predict import Predict, PredictConfig
from ziggurat.serve.server import Server, bind
with Predict(Path(sys.argv[1]), PredictConfig(model_control="explicit", load=("row", "other"),
             max_body=int(sys.argv[2]), memory=int(sys.argv[3]))) as predict:
    listening = bind("127.0.0.1", 0)
    server = Server([predict.part("127.0.0.1:0")], listening, CollectorRegistry())
    predict.started = lambda port: print(server.url[7:], f"127.0.0.1:{port}", flush=True)
    server.serve_forever()
"""


def repository(root: Path) -> Path:
    """Two models that serve, and one whose program calls what it may not."""
    for name in ("row", "other"):
        export(lambda x: x * 2, None, f"x:FP32[b,{hostile.WIDTH}] -> y", root / name / "1",
               platforms=["cpu"])  # fmt: skip
        (root / name / "model.toml").write_text("[batching]\nmax_batch_size = 4\n")
    forge(export(lambda x: x * 2, None, "x:FP32[4] -> y", root / "bad" / "1", platforms=["cpu"]))
    return root


def forge(path: Path) -> None:
    """Put a program with a custom call into a bundle, under a manifest that is whole."""
    import dataclasses

    from jax import export as jax_export

    def program(weights: Any, given: Any) -> list[Any]:
        call = jax.ffi.ffi_call("no_such_target", jax.ShapeDtypeStruct((4,), jnp.float32))
        return [call(given["x"])]

    unchecked = [jax_export.DisabledSafetyCheck.custom_call("no_such_target")]
    traced = jax_export.export(jax.jit(program), platforms=["cpu"], disabled_checks=unchecked)(
        {}, {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}
    )
    (path / "program").write_bytes(traced.serialize())
    manifest, _ = manifests.read(path)
    manifests.write(path, dataclasses.replace(manifest, files=manifests.entries(path)))


@contextlib.contextmanager
def running(root: Path, max_body: int, budget: int) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """A server process, and where it listens."""
    command = [sys.executable, "-c", PROGRAM, str(root), str(max_body), str(budget)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()
    finally:
        process.terminate()
        process.wait(60)


class Watch:
    """Asks again and again, and keeps how long each answer took (seconds)."""

    def __init__(self, address: str, method: str, path: str, body: bytes | None = None):
        self._asked = address, method, path, body
        self.times: list[float] = []
        self.failed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        address, method, path, body = self._asked
        while not self._stop.wait(0.02):
            begun = time.monotonic()
            connection = http.client.HTTPConnection(address, timeout=30)
            try:
                connection.request(method, path, body)
                answer = connection.getresponse()
                answer.read()
                self.failed += answer.status != 200
            except (OSError, http.client.HTTPException):
                self.failed += 1
            connection.close()
            self.times.append(time.monotonic() - begun)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def quantile(self, share: float) -> float:
        """A quantile of the times, in milliseconds."""
        return round(float(np.quantile(self.times, share)) * 1000, 1)


class Memory:
    """The largest resident size of a process and its children, looked at every 50 ms (bytes)."""

    def __init__(self, pid: int):
        self._process, self.most, self.alone = psutil.Process(pid), 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            with contextlib.suppress(psutil.Error):
                own = self._process.memory_info().rss
                rest = (child.memory_info().rss for child in self._process.children())
                self.alone = max(self.alone, own)
                self.most = max(self.most, own + sum(rest))

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


def attack(
    target: hostile.Target,
    seconds: float,
    clients: dict[str, tuple[Callable[..., list[int | str]], frozenset[int | str]]],
) -> dict[str, list[int | str]]:
    """Run every client in a thread of its own, again and again for so long; what each got."""
    found: dict[str, list[int | str]] = {name: [] for name in clients}
    end = time.monotonic() + seconds

    def run(name: str) -> None:
        while True:
            found[name] += clients[name][0](target)
            if time.monotonic() > end:
                return

    threads = [threading.Thread(target=run, args=(name,)) for name in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    return found


def child(arguments: list[str]) -> None:
    """The attackers, in a process of their own so that they do not slow the probes."""
    given = json.loads(arguments[0])
    target = hostile.Target(**given["target"])
    found = attack(target, given["seconds"], hostile.CLIENTS)
    print(json.dumps({name: sorted(set(map(str, got))) for name, got in found.items()}))


def measure(seconds: float, size: int) -> dict[str, Any]:
    """The figures of a full run."""
    with tempfile.TemporaryDirectory() as folder:
        root = repository(Path(folder))
        with running(root, size + 4 * 2**20, BUDGET) as (process, (web, rpc)):
            before = psutil.Process(process.pid).memory_info().rss
            infer = ("POST", "/v2/models/other/infer", hostile.request())
            live = ("GET", "/v2/health/live")
            with Watch(web, *live) as idle, Watch(web, *infer) as idle_other:
                time.sleep(min(10.0, seconds))
            target = {"http": web, "grpc": rpc, "size": size, "hostile_model": "bad"}
            given = json.dumps({"target": target, "seconds": seconds})
            command = [sys.executable, "-m", "tests.serve.hostile_load", "--child", given]
            with Watch(web, *live) as probe, Watch(web, *infer) as other, \
                    Memory(process.pid) as memory:  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            time.sleep(2)
            after = psutil.Process(process.pid).memory_info().rss
    return {
        "live_idle_ms": {"p50": idle.quantile(0.5), "max": idle.quantile(1)},
        "live_ms": {q: probe.quantile(v) for q, v in (("p50", 0.5), ("p99", 0.99), ("max", 1))},
        "live_failed": f"{probe.failed} of {len(probe.times)}",
        "other_idle_p99_ms": idle_other.quantile(0.99),
        "other_p99_ms": other.quantile(0.99),
        "other_failed": f"{other.failed} of {len(other.times)}",
        "memory_mib": {
            "before": before >> 20,
            "most": memory.alone >> 20,
            "most_with_children": memory.most >> 20,
            "after": after >> 20,
            "budget": BUDGET >> 20,
        },
        "answers": json.loads(done.stdout) if done.returncode == 0 else done.stderr[-2000:],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--seconds", type=float, default=40.0)
        parser.add_argument("--mib", type=int, default=60)
        options = parser.parse_args()
        print(json.dumps(measure(options.seconds, options.mib * 2**20)))
