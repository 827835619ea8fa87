"""The forms of attention against each other, interleaved: seconds forward and with gradients.

Shows what formulation alone is worth on XLA, and what the C++ kernel adds::

    python benchmarks/attention.py --length 512
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.kernels.attention import AttentionMask, attention
from ziggurat.kernels.cpu.library import available

FORMS = ("reference", "grouped", "blocked", *(["cpu"] if available("attention") else []))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    shape = (options.batch, options.length, options.heads, options.head_dim)
    draw = np.random.default_rng(0)
    inputs = [jnp.asarray(draw.normal(size=shape), jnp.float32) for _ in range(3)]
    positions = jnp.tile(jnp.arange(options.length)[None], (options.batch, 1))
    mask = AttentionMask(positions, positions, aligned=True)

    def forward(form: str):
        def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attention(q, k, v, mask, scale=options.head_dim**-0.5, implementation=form)

        return run

    contenders = {}
    for form in FORMS:
        run = forward(form)
        contenders[form, "forward"] = jax.jit(run)
        contenders[form, "with gradients"] = jax.jit(
            jax.grad(lambda q, k, v, run=run: run(q, k, v).sum(), argnums=(0, 1, 2))
        )
    times: dict[tuple[str, str], list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        jax.block_until_ready(call(*inputs))
    for _ in range(options.rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(call(*inputs))
            times[name].append(time.perf_counter() - start)
    for what in ("forward", "with gradients"):
        for form in FORMS:
            ratios = [a / b for a, b in zip(times["reference", what], times[form, what])]
            median = statistics.median(times[form, what])
            print(
                f"{what:<15} {form:<10} {median * 1e3:7.1f} ms, reference / this "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
