"""Products with quantised weights against float32 ones, interleaved, at a model's shapes.

``rows`` 1 is decoding, many is prefill. Ratios are to float32 in the same round, so that other work
on the machine touches both; above 1 is slower. Prints a table; ``--output`` writes JSON::

    python benchmarks/quantized_product.py --rows 1 256
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from ziggurat.kernels.linear import WeightFormat, project
from ziggurat.quantize.weights import quantize_array

FORMATS = {
    "int8": WeightFormat("int8"),
    "w8a8": WeightFormat("int8", "int8"),
    "fp8": WeightFormat("fp8_e4m3"),
    "int4, tile 32, zero points": WeightFormat("int4", tile_size=32, symmetric=False),
    "nf4, tile 32": WeightFormat("nf4", tile_size=32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=576)
    parser.add_argument("--outputs", type=int, default=1536)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    shape = (options.inputs, options.outputs)
    kernel = jax.random.normal(jax.random.key(0), shape)
    weights = {"float32": kernel}
    weights |= {name: quantize_array(kernel, form, -2) for name, form in FORMATS.items()}
    found = []
    for rows in options.rows:
        x = jax.random.normal(jax.random.key(1), (rows, options.inputs))
        found += measure(x, weights, options.rounds)
    print(f"{options.inputs} x {options.outputs}")
    for entry in found:
        low, high = entry["quartiles"]
        print(
            f"rows {entry['rows']:>4}  {entry['weight']:<28} {entry['ms']:8.3f} ms  "
            f"ratio {entry['ratio']:6.2f} ({low:.2f} to {high:.2f})"
        )
    if options.output is not None:
        machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "jax": jax.__version__}
        machine |= {"load": os.getloadavg()[0]}
        body = {"shape": shape, "machine": machine, "rounds": options.rounds, "results": found}
        options.output.write_text(json.dumps(body, indent=1) + "\n")


def measure(x: jax.Array, weights: dict, rounds: int) -> list[dict]:
    """Median milliseconds of each weight, and the quartiles of its ratio to float32."""
    call = jax.jit(project)
    times: dict[str, list[float]] = {name: [] for name in weights}
    for weight in weights.values():
        jax.block_until_ready(call(x, weight))
    repeats = 20 if len(x) == 1 else 1
    for _ in range(rounds):
        for name, weight in weights.items():
            start = time.perf_counter()
            for _ in range(repeats):
                out = call(x, weight)
            jax.block_until_ready(out)
            times[name].append((time.perf_counter() - start) / repeats)
    results = []
    for name in weights:
        ratios = [t / f for t, f in zip(times[name], times["float32"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        results.append(
            {
                "rows": len(x),
                "weight": name,
                "ms": 1000 * statistics.median(times[name]),
                "ratio": statistics.median(ratios),
                "quartiles": [quartiles[0], quartiles[2]],
            }
        )
    return results


if __name__ == "__main__":
    main()
