"""All hostile clients at once against a server process: liveness, memory, and another model's p99.

    python -m tests.serve.hostile_load --seconds 40

The server holds bundles and a language model. Prints JSON: each figure without and with the
clients, and whether it is within its bound: the liveness probe never fails and answers within
100 ms or three times its longest idle time, whichever is more; what memory grows by is within the
budget and a fifth of it; another model's p99 is within twice its idle one.

Three runs tell what the server does from what a machine does whose cores its clients use too:
``apart`` has the clients on a core of their own, as if they were elsewhere, and the server with all
its processes and the probes on the others; ``together`` has all of them on all cores; ``burning``
has, instead of clients, as many processes that only burn as there are cores. In all of them a
``control`` is asked beside the server: a process that answers and does nothing else, on the same
cores, which nobody attacks. What holds it up is the machine and not the server, so the bounds start
from the worse of idle and control. ``flooded_control_ms`` is what the control answers in while the
two clients that open connections and leave do so to it alone, and nothing else runs: no server on
these cores does better than that for another model. ``event_loop`` says how late the server's loop
came to its work (over 50 ms), and the most that each cause took: it computed, it had no core, or it
waited for the interpreter's lock. Loopback only; needs about 4 GiB of memory and two cores.
"""

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from tests.serve import hostile, resident

from ziggurat.serve.predict import export
from ziggurat.serve.predict import manifest as manifests

BUDGET = 2**30


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
def running(
    root: Path, max_body: int, budget: int, stacks: str, told: dict[str, Any]
) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """A server process, and where it listens; at its end ``told`` gets what it says of its loop."""
    command = [sys.executable, "-m", "tests.serve.hostile_server", str(root)]
    command += [str(max_body), str(budget), *([stacks] if stacks else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().split()
    finally:
        process.terminate()
        process.wait(60)
        told |= json.loads(process.stdout.readline() or "{}")


CONTROL = """
import asyncio
async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\nconnection: close\\r\\n\\r\\n")
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextlib.contextmanager
def control() -> Iterator[str]:
    """A server that does nothing else, in a process of its own: where it listens."""
    command = [sys.executable, "-c", CONTROL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


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


def attack(
    target: hostile.Target,
    seconds: float,
    clients: hostile.Clients,
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
    found = attack(target, given["seconds"], CLIENTS[given["clients"]])
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    print(
        json.dumps(
            {"cpu_s": used, "got": {n: sorted(set(got), key=str) for n, got in found.items()}}
        )
    )


def burn(seconds: float, cores: set[int]) -> None:
    """Use up these cores for so long."""
    code = f"import time; end = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    burners = [subprocess.Popen([sys.executable, "-c", code]) for _ in cores]
    for burner in burners:
        burner.wait()


@dataclasses.dataclass
class Run:
    """Where everybody runs."""

    server: set[int]
    clients: set[int]
    hostile: bool = True


def runs() -> dict[str, Run]:
    """The three runs, for the cores that there are."""
    cores = os.sched_getaffinity(0)
    last = {max(cores)}
    return {
        "apart": Run(cores - last or cores, last),
        "together": Run(cores, cores),
        "burning": Run(cores, cores, False),
    }


LEAVERS = ("clients that leave", "LLM leave_at_once")
CLIENTS = {
    "all": hostile.CLIENTS,
    "bundles": hostile.BUNDLE_CLIENTS,
    "leavers": {name: hostile.CLIENTS[name] for name in LEAVERS},
}


def attacked(run: Run, target: dict[str, Any], seconds: float, clients: str) -> dict[str, Any]:
    """What clients that attack a server for so long say at their end."""
    given = json.dumps({"target": target, "seconds": seconds, "clients": clients})
    command = [sys.executable, "-m", "tests.serve.hostile_load", "--child", given]
    done = subprocess.run(
        ["taskset", "-c", ",".join(map(str, run.clients)), *command],
        stdout=subprocess.PIPE, text=True, timeout=900, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def flooded(run: Run, seconds: float) -> Watch:
    """Answers of a control to which clients open connections and leave."""
    os.sched_setaffinity(0, run.server)
    with control() as beside, Watch(beside, "GET", "/v2/health/live") as watch:
        attacked(run, {"http": beside, "grpc": ""}, seconds, "leavers")
    return watch


def measure(
    run: Run, root: Path, seconds: float, size: int, clients: str, stacks: str = ""
) -> dict[str, Any]:
    """The figures of a run."""
    os.sched_setaffinity(0, run.server)  # the server inherits it; the probes are here
    loop: dict[str, Any] = {}
    serving = running(root, size + 4 * 2**20, BUDGET, stacks, loop)
    with control() as beside, serving as (process, (web, rpc)):
        infer = ("POST", "/v2/models/other/infer", hostile.request())
        live = ("GET", "/v2/health/live")
        with (
            Watch(web, *live) as idle,
            Watch(web, *infer) as idle_other,
            Watch(beside, *live) as idle_beside,
            resident.Memory(process.pid) as before,
        ):
            time.sleep(min(10.0, seconds))
        cpu = _cpu(process.pid)
        answers: dict[str, Any] = {}
        begun = time.monotonic()
        with (
            Watch(web, *live) as probe,
            Watch(web, *infer) as other,
            Watch(beside, *live) as now_beside,
            resident.Memory(process.pid) as memory,
        ):
            if run.hostile:
                target = {"http": web, "grpc": rpc, "size": size, "hostile_model": "bad"}
                answers = attacked(run, target, seconds, clients)
            else:
                burn(seconds, run.clients)
        wall = time.monotonic() - begun
        cpu = _cpu(process.pid) - cpu
        time.sleep(2)
        with resident.Memory(process.pid) as after:
            time.sleep(0.2)
    return _figures((idle, probe), (idle_other, other), (idle_beside, now_beside)) | {
        "event_loop": loop,
        "memory_mib": _memory(before, memory, after),
        "cores_used": {
            "server": round(cpu / wall, 2),
            "clients": round(answers.get("cpu_s", 0) / wall, 2),
        },
        "wrong_answers": {
            name: wrong
            for name, got in answers.get("got", {}).items()
            if (wrong := sorted(set(got) - hostile.CLIENTS[name][1], key=str))
        },
    }


Pair = tuple[Watch, Watch]
"""Without and with the clients."""


def _figures(live: Pair, others: Pair, controls: Pair) -> dict[str, Any]:
    (idle, probe), (idle_other, other), (idle_beside, beside) = live, others, controls
    most = max(100.0, 3 * max(idle.quantile(1), beside.quantile(1)))
    machine = max(0.0, beside.quantile(0.99) - idle_beside.quantile(0.99))
    longest = 2 * (idle_other.quantile(0.99) + machine)
    within = probe.quantile(1) <= most and not probe.failed
    return {
        "control_ms": {"idle": _spread(idle_beside), "now": _spread(beside)},
        "live_ms": {
            "idle": _spread(idle),
            "now": _spread(probe),
            "failed": f"{probe.failed} of {len(probe.times)}",
            "over_bound": sum(time > most / 1000 for time in probe.times),
            "bound": most,
            "within": within,
        },
        "other_ms": {
            "idle": _spread(idle_other),
            "now": _spread(other),
            "failed": f"{other.failed} of {len(other.times)}",
            "bound_p99": longest,
            "within": other.quantile(0.99) <= longest and not other.failed,
        },
    }


def _spread(watch: Watch) -> dict[str, float]:
    named = {"p50": 0.5, "p99": 0.99, "max": 1}
    return {name: watch.quantile(share) for name, share in named.items()}


def _memory(
    before: resident.Memory, now: resident.Memory, after: resident.Memory
) -> dict[str, Any]:
    grown = now.most - before.most
    return {
        "before": before.most >> 20,
        "most": now.most >> 20,
        "after": after.most >> 20,
        "most_of_each": {name: size >> 20 for name, size in now.parts.items()},
        "grown": grown >> 20,
        "budget": BUDGET >> 20,
        "within": grown <= 1.2 * BUDGET,
    }


def _cpu(pid: int) -> float:
    """Seconds of processor that a process, its children and those that ended have used."""
    server = psutil.Process(pid)
    used = sum(server.cpu_times()[:4])
    for process in server.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            used += sum(process.cpu_times()[:2])
    return used


def main() -> None:
    """The runs asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--mib", type=int, default=60)
    parser.add_argument("--clients", choices=CLIENTS, default="all")
    parser.add_argument("--runs", nargs="+", choices=runs(), default=list(runs()))
    parser.add_argument("--stacks", default="", help="file for the stacks that hold the loop up")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = repository(Path(folder))
        for name, run in runs().items():
            if name in options.runs:
                load = os.getloadavg()[0]
                found[name] = measure(
                    run,
                    root,
                    options.seconds,
                    options.mib * 2**20,
                    options.clients,
                    options.stacks,
                )
                found[name]["load_average_before"] = load
                if run.hostile:
                    found[name]["flooded_control_ms"] = _spread(flooded(run, options.seconds))
                print(json.dumps({name: found[name]}, indent=1), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
