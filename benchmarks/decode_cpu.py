"""The products of one decoded token, all matrices of SmolLM2-135M once, on CPU: float32, int8 and
int4 by our kernels, by XLA, and float32 by numpy and PyTorch, against the speed of reading memory.

Products follow one another as in a model, and weights lie where the engine puts them, in huge pages
(PyTorch's in its own memory). All take turns in every round, of one call that is not timed and four
that are; so does a sum over 256 MB, by XLA and by PyTorch, of which the faster is the machine's
read bandwidth. Prints GB/s of stored weights, their share of it, and how long a
token would take of products alone; writes ``benchmarks/results/decode_cpu.json``::

    python benchmarks/decode_cpu.py --rounds 9

PyTorch is left out where it is not installed.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.kernels.cpu.library import library
from ziggurat.kernels.linear import (
    PackedWeight,
    WeightFormat,
    project,
    project_each,
    project_rows,
    quantized,
)
from ziggurat.quantize.weights import quantize_array
from ziggurat.serve.llm.huge_pages import in_huge_pages

RESULT = Path(__file__).parent / "results" / "decode_cpu.json"
LAYERS, WIDTH, KEYS, HIDDEN, VOCAB = 30, 576, 192, 1536, 49152
GROUPS = (((WIDTH, WIDTH), (WIDTH, KEYS), (WIDTH, KEYS)), ((WIDTH, WIDTH),))
GROUPS += (((WIDTH, HIDDEN), (WIDTH, HIDDEN)), ((HIDDEN, WIDTH),))
"""A layer's matrices; those that meet the same activations together."""
INT8 = WeightFormat("int8")
FORMATS = {"float32": (None, None), "int8": (INT8, INT8)}
FORMATS["int4"] = (WeightFormat("int4", tile_size=32, symmetric=False), INT8)
"""Of kernels and of the table: what the recipes of these names give."""
READ = 256 * 2**20
CALLS = 4
REST_S = 0.02
"""Until the threads of the one before have stopped waiting for work, which takes a core."""


def weights(width: str) -> tuple[list[list[list[Any]]], Any]:
    """All kernels by layer and group, and the table."""
    kernel, table = FORMATS[width]

    def made(shape: tuple[int, int], format: WeightFormat | None, axis: int) -> Any:
        array = jnp.asarray(rng.normal(size=shape), jnp.float32)
        return array if format is None else pack(array, format, axis)

    rng = np.random.default_rng(0)
    pack = jax.jit(quantize_array, static_argnums=(1, 2))
    layers = [[[made(s, kernel, -2) for s in group] for group in GROUPS] for _ in range(LAYERS)]
    return layers, made((VOCAB, WIDTH), table, -1)


def packed(layers: list[Any], table: Any) -> tuple[list[Any], Any]:
    """As the engine lays them out, but that each layer's are arrays of their own."""
    each = [[[PackedWeight.of(w, -2) for w in group] for group in layer] for layer in layers]
    return each, PackedWeight.of(table, -1)


def token(x: Any, layers: list[Any], table: Any, each: Any, logits: Any) -> Any:
    """One after another, as in a model: attention and all else that is no product left out."""
    for qkv, (out,), gate_up, (down,) in layers:
        query, key, value = each(x, qkv)
        (x,) = each(query * (1 + key.mean() + value.mean()), [out])
        gate, up = each(x, gate_up)
        (x,) = each(gate * up, [down])
        x = x / (1 + abs(x).max())
    return logits(x, table)


def ours(x: Any, layers: list[Any], table: Any) -> Any:
    return token(x, layers, table, project_each, project_rows)


def by_xla(x: Any, layers: list[Any], table: Any) -> Any:
    def each(x: Any, kernels: list[Any]) -> list[Any]:
        return [project(x, kernel, implementation="flat") for kernel in kernels]

    def logits(x: Any, table: Any) -> Any:
        quantised = isinstance(table, quantized.QuantizedWeight)
        return quantized.product(x, table) if quantised else x @ table.T

    return token(x, layers, table, each, logits)


def plain(x: Any, layers: list[Any], table: Any) -> Any:
    """numpy's and PyTorch's operators."""
    return token(x, layers, table, lambda x, ws: [x @ w for w in ws], lambda x, t: x @ t.T)


def contenders(rows: int) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """What takes turns, and the bytes that each reads."""
    x = jnp.ones((rows, WIDTH))
    calls: dict[str, Callable[[], Any]] = {}
    sizes: dict[str, int] = {}
    for width in FORMATS:
        here = jax.tree.map(np.asarray, weights(width))
        layers, table = in_huge_pages(here)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((layers, table)))
        for name, form, given in (
            ("ziggurat", ours, in_huge_pages(packed(*here))),
            ("XLA", by_xla, (layers, table)),
        ):
            call = jax.jit(form)
            calls[f"{name} {width}"] = lambda c=call, a=(x, *given): jax.block_until_ready(c(*a))
            sizes[f"{name} {width}"] = size
        if width == "float32":
            add_peers(calls, sizes, size, jax.tree.map(np.asarray, (x, layers, table)))
    big = jnp.ones(READ // 4)
    total = jax.jit(jnp.sum)
    calls["read, XLA"], sizes["read, XLA"] = lambda: total(big).block_until_ready(), READ
    return calls, sizes


def add_peers(calls: dict[str, Any], sizes: dict[str, int], size: int, arrays: Any) -> None:
    """numpy, and PyTorch if it is there."""

    calls["numpy float32"], sizes["numpy float32"] = lambda: plain(*arrays), size
    try:
        import torch
    except ImportError:
        return
    tensors = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), arrays)
    big = torch.ones(READ // 4)

    def call() -> Any:
        with torch.no_grad():
            return plain(*tensors)

    calls["torch float32"], sizes["torch float32"] = call, size
    calls["read, torch"], sizes["read, torch"] = lambda: big.sum(), READ


def measure(rows: int, rounds: int) -> dict[str, Any]:
    calls, sizes = contenders(rows)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(REST_S)
            call()
            begun = time.perf_counter()
            for _ in range(CALLS):
                call()
            seconds[name].append((time.perf_counter() - begun) / CALLS)
    reads = [name for name in calls if name.startswith("read")]
    read = [READ / min(times) / 1e9 for times in zip(*(seconds[name] for name in reads))]
    bandwidth = statistics.median(read)
    print(f"{rows} rows; read bandwidth {bandwidth:.1f} GB/s")
    found: dict[str, Any] = {"read_gb_per_second": bandwidth, "read_spread": [min(read), max(read)]}
    for name, times in seconds.items():
        rates = [sizes[name] / t / 1e9 for t in times]
        shares = [rate / whole for rate, whole in zip(rates, read)]
        middle = statistics.median
        found[name] = {
            "megabytes": sizes[name] / 1e6,
            "milliseconds": middle(times) * 1e3,
            "gb_per_second": middle(rates),
            "share_of_read": [middle(shares), min(shares), max(shares)],
        }
        print(
            f"  {name:<18} {sizes[name] / 1e6:6.0f} MB  {middle(times) * 1e3:8.2f} ms  "
            f"{middle(rates):6.1f} GB/s  {middle(shares):5.0%} of read "
            f"({min(shares):.0%} to {max(shares):.0%})"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "rows": {rows: measure(rows, options.rounds) for rows in options.rows}
    }
    result["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "kernels": library().level or library().why_not,
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if not options.no_write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
