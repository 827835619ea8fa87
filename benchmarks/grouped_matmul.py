"""The forms of the grouped matrix product against each other, interleaved: milliseconds of the
product, and with its gradients.

Rows are dealt to groups at random, as a router would::

    python benchmarks/grouped_matmul.py --shapes 2,8,1024,2048 4096,8,512,1024
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.kernels.grouped_matmul import IMPLEMENTATIONS, grouped_matmul

SHAPES = ("2,8,1024,2048", "8,64,512,256", "2048,8,256,512", "4096,8,512,1024")
"""Rows, groups, input and output channels: two of decoding, two of training."""


def measure(shape: tuple[int, int, int, int], rounds: int) -> None:
    """Print a line for each form."""
    rows, groups, width, out = shape
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(rows, width)), jnp.float32)
    kernel = jnp.asarray(draw.normal(size=(groups, width, out)), jnp.float32)
    sizes = jnp.asarray(np.bincount(draw.integers(0, groups, rows), minlength=groups))
    calls = {}
    for form in IMPLEMENTATIONS:

        def run(x, kernel, form=form):
            return grouped_matmul(x, kernel, sizes, implementation=form)

        calls[form, "forward"] = jax.jit(run)
        calls[form, "with gradients"] = jax.jit(
            jax.grad(lambda x, kernel, run=run: run(x, kernel).sum(), argnums=(0, 1))
        )
    times: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call(x, kernel))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(x, kernel))
            times[name].append(time.perf_counter() - start)
    print(f"{rows} rows, {groups} groups, {width} x {out}")
    for (form, what), taken in times.items():
        low, middle = min(taken) * 1e3, statistics.median(taken) * 1e3
        print(f"  {form:10} {what:15} median {middle:9.2f} ms, least {low:9.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for text in options.shapes:
        rows, groups, width, out = (int(number) for number in text.split(","))
        measure((rows, groups, width, out), options.rounds)


if __name__ == "__main__":
    main()
