"""Requests per second and latency of bundles over KServe v2, against LitServe and MLServer.

All serve the same three-layer function of JAX on this machine, with dynamic batching, and are asked
in turn within one run by the same client process. JSON is compared with JSON; the product's binary
tensors and gRPC stand beside::

    python -m venv peers && peers/bin/pip install litserve mlserver "jax[cpu]"
    python benchmarks/serve_predict.py --peer-python peers/bin/python --rounds 5

Without ``--peer-python`` the product is measured alone and nothing is stored.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

HERE = Path(__file__).parent
PEERS = HERE / "serve_predict_peers"
RESULT = HERE / "results" / "serve_predict.json"
sys.path.insert(0, str(PEERS))

from function import MAX_ROWS, WIDTH, function, weights  # noqa: E402

ITEMS = (1, 16, 128)
CLIENTS = (1, 8, 32)
GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to ask one server."""

    name: str
    url: str
    path: str
    form: str
    """``v2`` JSON, ``binary``, ``grpc`` or ``lit`` JSON."""


def inputs(items: int) -> np.ndarray:
    """One request's rows."""
    return np.random.default_rng(items).standard_normal((items, WIDTH)).astype(np.float32)


def request(form: str, x: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers."""
    headers = {"content-type": "application/json"}
    if form == "lit":
        return json.dumps({"input": x.tolist()}).encode(), headers
    tensor: dict = {"name": "x", "datatype": "FP32", "shape": x.shape}
    if form == "v2":
        return json.dumps({"inputs": [{**tensor, "data": x.ravel().tolist()}]}).encode(), headers
    if form == "binary":
        tensor["parameters"] = {"binary_data_size": x.nbytes}
        body = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(body).encode()
        size = {"inference-header-content-length": str(len(head))}
        return head + x.tobytes(), {"content-type": "application/octet-stream", **size}
    from ziggurat.serve.predict.messages import MESSAGES

    message = MESSAGES["ModelInferRequest"](
        model_name="mlp", inputs=[tensor], raw_input_contents=[x.tobytes()]
    )
    return message.SerializeToString(), {}


def outputs(contender: Contender, body: bytes, headers: dict[str, str]) -> np.ndarray:
    """What a contender answers, to compare before anything is timed."""
    if contender.form == "grpc":
        import grpc

        from ziggurat.serve.predict.messages import MESSAGES

        with grpc.insecure_channel(contender.url) as channel:
            data = channel.unary_unary(contender.path)(body)
        answer = MESSAGES["ModelInferResponse"].FromString(data)
        return np.frombuffer(answer.raw_output_contents[0], np.float32)
    asked = urllib.request.Request(f"http://{contender.url}{contender.path}", body, headers)
    with urllib.request.urlopen(asked) as response:
        data, size = response.read(), response.headers.get("Inference-Header-Content-Length")
    if contender.form == "binary":
        return np.frombuffer(data[int(size) :], np.float32)
    tree = json.loads(data)
    found = tree["output"] if contender.form == "lit" else tree["outputs"][0]["data"]
    return np.asarray(found, np.float32)


def free_port() -> int:
    """A port that nobody has taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@contextlib.contextmanager
def process(command: list[str], url: str, path: str) -> Iterator[None]:
    """A server that answers ``path``, ended afterwards."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent / "src")])}
    with tempfile.TemporaryFile() as log:
        started = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=PEERS, env=environment, start_new_session=True
        )
        try:
            for _ in range(1200):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://{url}{path}", timeout=5)
                    break
                if started.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command} ended:\n{log.read().decode()[-2000:]}")
                time.sleep(0.1)
            yield
        finally:
            os.killpg(started.pid, 15)
            started.wait()


@contextlib.contextmanager
def contenders(folder: Path, peer_python: str | None) -> Iterator[list[Contender]]:
    """All servers, running."""
    from ziggurat.serve.predict import export

    export(function, weights(), f"x:FP32[b,{WIDTH}] -> probabilities", folder / "mlp" / "1")
    (folder / "mlp" / "model.toml").write_text(f"[batching]\nmax_batch_size = {MAX_ROWS}\n")
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    infer = "/v2/models/mlp/infer"
    found = [
        Contender("ziggurat json", http, infer, "v2"),
        Contender("ziggurat binary", http, infer, "binary"),
        Contender("ziggurat grpc", grpc, GRPC_PATH, "grpc"),
    ]
    with contextlib.ExitStack() as stack:
        port, grpc_port = (url.partition(":")[2] for url in (http, grpc))
        command = [sys.executable, "-m", "ziggurat.cli.main", "serve", str(folder)]
        command += ["--port", port, "--grpc-port", grpc_port]
        stack.enter_context(process(command, http, "/v2/health/ready"))
        if peer_python:
            lit, http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(3))
            ports = [url.partition(":")[2] for url in (http, grpc)]
            command = [peer_python, "lit_server.py", lit.partition(":")[2]]
            stack.enter_context(process(command, lit, "/health"))
            stack.enter_context(
                process([peer_python, "ml_server.py", *ports], http, "/v2/health/ready")
            )
            found += [
                Contender("litserve json", lit, "/predict", "lit"),
                Contender("mlserver json", http, infer, "v2"),
                Contender("mlserver grpc", grpc, GRPC_PATH, "grpc"),
            ]
        yield found


def measure(contender: Contender, body: Path, headers: dict, clients: int, seconds: float) -> dict:
    """One run of the client process."""
    asked = {
        "url": contender.url,
        "path": contender.path,
        "kind": "grpc" if contender.form == "grpc" else "http",
        "headers": headers,
        "body": str(body),
        "clients": clients,
        "seconds": seconds,
    }
    command = [sys.executable, str(PEERS / "client.py")]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{contender.name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(cell: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """Requests per second of the product over a peer's in the same round, JSON over JSON and gRPC
    over gRPC, and of its binary form over LitServe's only one."""
    found = {}
    for own, peer in (
        ("ziggurat json", "litserve json"),
        ("ziggurat json", "mlserver json"),
        ("ziggurat binary", "litserve json"),
        ("ziggurat grpc", "mlserver grpc"),
    ):
        if peer in cell:
            rates = [
                (a["requests"] / a["seconds"]) / (b["requests"] / b["seconds"])
                for a, b in zip(cell[own], cell[peer], strict=True)
            ]
            found[f"{own} / {peer}"] = spread(rates)
    return found


def overhead(url: str) -> dict[str, float]:
    """Mean microseconds of a request's parts, from the product's own statistics."""
    with urllib.request.urlopen(f"http://{url}/v2/models/mlp/stats") as response:
        (stats,) = json.load(response)["model_stats"]
    parts = stats["inference_stats"]
    return {name: part["ns"] / part["count"] / 1e3 for name, part in parts.items() if part["count"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--peer-python", help="a Python with litserve, mlserver and jax")
    options = parser.parse_args()
    if not options.peer_python:
        print("no --peer-python: LitServe and MLServer are left out, nothing is stored")
    result: dict = {"rounds": options.rounds, "seconds": options.seconds, "cells": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        contenders(Path(folder) / "models", options.peer_python) as all_of_them,
    ):
        for items in ITEMS:
            bodies = prepare(all_of_them, items, Path(folder))
            for clients in CLIENTS:
                cell: dict[str, list[dict]] = {c.name: [] for c in all_of_them}
                for number in range(options.rounds + 1):
                    for c in all_of_them:
                        seconds = options.seconds if number else 0.3  # the first one warms up
                        got = measure(c, *bodies[c.name], clients, seconds)
                        cell[c.name] += [got] if number else []
                result["cells"].append(report(items, clients, cell))
        result["ziggurat_mean_us"] = overhead(all_of_them[0].url)
    print("mean of all ziggurat requests (us):", result["ziggurat_mean_us"])
    if options.peer_python:
        result["machine"] = facts(options.peer_python)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def prepare(everybody: list[Contender], items: int, folder: Path) -> dict[str, tuple[Path, dict]]:
    """Bodies on disk, after all contenders have given the same answer."""
    x, found = inputs(items), {}
    wanted = np.asarray(jax.jit(function)(weights(), x)).ravel()
    for c in everybody:
        body, headers = request(c.form, x)
        np.testing.assert_allclose(outputs(c, body, headers), wanted, 1e-4, 1e-6, err_msg=c.name)
        path = folder / f"{c.form}-{items}"
        path.write_bytes(body)
        found[c.name] = path, headers
    return found


def report(items: int, clients: int, cell: dict[str, list[dict]]) -> dict:
    """Print one cell and give it as plain figures."""
    print(f"{items} items per request, {clients} clients")
    plain: dict = {"items": items, "clients": clients, "contenders": {}, "ratio": ratios(cell)}
    for name, rounds in cell.items():
        figures = {
            "requests_per_s": spread([r["requests"] / r["seconds"] for r in rounds]),
            "p50_ms": spread([1e3 * r["p50_s"] for r in rounds]),
            "p99_ms": spread([1e3 * r["p99_s"] for r in rounds]),
        }
        plain["contenders"][name] = figures
        rate, p50, p99 = (figures[k]["median"] for k in ("requests_per_s", "p50_ms", "p99_ms"))
        print(f"  {name:<16} {rate:8.0f} requests/s  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms")
    for name, ratio in plain["ratio"].items():
        print(f"  {name}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    return plain


def facts(peer_python: str) -> dict[str, object]:
    """What the figures depend on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({n: m.version(n) for n in ('litserve', 'mlserver', 'jax')}))"
    )
    peers = subprocess.run([peer_python, "-c", code], capture_output=True, text=True, check=True)
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
        "http_parser": "httptools" if _installed("httptools") else "h11",
        "peers": json.loads(peers.stdout),
        "date": time.strftime("%Y-%m-%d"),
    }


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    main()
