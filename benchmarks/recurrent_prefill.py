"""Growth of prefill with the length of the prompt, for every recurrent mixer and for attention.

Times one layer's forward pass and prints the exponent of a power law fitted to the lengths: 1 is
linear, as recurrent mixers must be; attention goes towards 2. Time is that of all the process's
threads, so that other work on the machine counts little::

    python benchmarks/recurrent_prefill.py --lengths 1024 2048 4096 8192
"""

import argparse
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ziggurat.nn import (
    AttentionRule,
    Causal,
    GatedDeltaNetConfig,
    GroupedAttentionConfig,
    Mamba2Config,
    Precision,
    ShortConvolutionConfig,
)

WIDTH = 128
MIXERS = {
    "gated delta net": GatedDeltaNetConfig(
        key_heads=2, value_heads=4, key_dim=32, value_dim=32, taps=4, norm_eps=1e-5
    ),
    "Mamba-2": Mamba2Config(heads=8, head_dim=32, groups=1, state_dim=64, taps=4, norm_eps=1e-5),
    "short convolution": ShortConvolutionConfig(channels=WIDTH, taps=3),
    "attention": GroupedAttentionConfig(heads=4, kv_heads=2, head_dim=32),
}


def seconds(name: str, length: int, rounds: int) -> float:
    """Least processor time of one forward pass of a mixer."""
    graph, state = nnx.split(MIXERS[name].build(WIDTH, 0.1, Precision(), nnx.Rngs(params=0)))
    x = jax.random.normal(jax.random.key(0), (1, length, WIDTH))
    positions = jnp.arange(length)[None]

    @jax.jit
    def run(state, x):
        return nnx.merge(graph, state)(x, positions, None, AttentionRule(0.2), Causal(), ())[0]

    jax.block_until_ready(run(state, x))
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        jax.block_until_ready(run(state, x))
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in MIXERS:
        times = [seconds(name, length, options.rounds) for length in options.lengths]
        exponent = np.polyfit(np.log(options.lengths), np.log(times), 1)[0]
        shown = ", ".join(f"{n}: {1e3 * t:.1f} ms" for n, t in zip(options.lengths, times))
        print(f"{name:18} exponent {exponent:.2f} ({shown})", flush=True)


if __name__ == "__main__":
    main()
