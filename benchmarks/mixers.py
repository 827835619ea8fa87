"""Growth of a mixer's time with the length of a sequence, and of compilation with depth.

Times one layer of every recurrent mixer, and of attention beside them, in its chunked form
(prefill) and token by token with its state (decode), and fits a power law to the lengths: an
exponent of 1 is linear, as recurrent mixers must be; attention goes towards 2. Then compiles a
hybrid of delta nets and attention with 8 and with 64 layers, forward and backward: layers of a kind
are scanned, so time must not grow with them. Time is that of all the process's threads, so that
other work on the machine counts little::

    python benchmarks/mixers.py --lengths 1024 2048 4096 8192 --json benchmarks/results/mixers.json
"""

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ziggurat.models import LanguageModel, Qwen35Config
from ziggurat.nn import (
    AttentionRule,
    Cached,
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
LINEAR = 1.15
"""Largest exponent that counts as linear."""
COMPILE_RATIO = 1.3
"""Most that compiling 64 layers may take of compiling 8."""
RULE = AttentionRule(0.2)


def least(run: Callable[[], Any], rounds: int) -> float:
    """Least processor time of a run in seconds, after one that compiles."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        jax.block_until_ready(run())
        taken.append(time.process_time() - start)
    return min(taken)


def prefill(name: str, length: int) -> Callable[[], Any]:
    """One forward pass of a mixer over a sequence."""
    graph, state = nnx.split(MIXERS[name].build(WIDTH, 0.1, Precision(), nnx.Rngs(params=0)))
    x = jax.random.normal(jax.random.key(0), (1, length, WIDTH))
    positions = jnp.arange(length)[None]

    @jax.jit
    def run(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x, positions, None, RULE, Causal(), ())[0]

    return lambda: run(state, x)


def decode(name: str, length: int) -> Callable[[], Any]:
    """A sequence through a mixer token by token, from an empty state."""
    config = MIXERS[name]
    graph, state = nnx.split(config.build(WIDTH, 0.1, Precision(), nnx.Rngs(params=0)))
    x = jax.random.normal(jax.random.key(0), (length, 1, 1, WIDTH))
    empty = Cached.empty([(config.state, 1)], 1, length, jnp.float32).states[0]
    first = jax.tree.map(lambda array: array[0], empty)

    @jax.jit
    def run(state: Any, x: jax.Array) -> jax.Array:
        mixer = nnx.merge(graph, state)

        def step(held: Any, token: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            at, one = token
            context = Cached((), at[None])
            out, held = mixer(one, at[None, None], None, RULE, context, held)
            return held, out

        return jax.lax.scan(step, first, (jnp.arange(length), x))[1]

    return lambda: run(state, x)


def growth(
    form: Callable[[str, int], Callable[[], Any]], name: str, lengths: list[int], rounds: int
) -> dict[str, Any]:
    """Exponent and times of one form of a mixer."""
    times = [least(form(name, length), rounds) for length in lengths]
    exponent = float(np.polyfit(np.log(lengths), np.log(times), 1)[0])
    return {
        "exponent": round(exponent, 3),
        "ms": {str(length): round(1e3 * taken, 2) for length, taken in zip(lengths, times)},
    }


def compile_seconds(layers: int, rounds: int) -> float:
    """Least processor time of lowering and compiling a hybrid's loss with its gradients."""
    config = Qwen35Config(
        vocab_size=256, d_model=64, n_layers=layers, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128,
        rotary_dim=8, delta_key_heads=2, delta_value_heads=4, delta_key_dim=16, delta_value_dim=16,
    )  # fmt: skip
    model = LanguageModel.build(config)
    tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    taken = []
    for _ in range(rounds):

        def loss(params: Any, tokens: jax.Array) -> jax.Array:
            return jax.nn.log_softmax(model.logits(params, tokens))[..., 0].mean()

        start = time.process_time()
        jax.jit(jax.value_and_grad(loss)).lower(model.abstract, tokens).compile()
        taken.append(time.process_time() - start)
        jax.clear_caches()
    return min(taken)


def measure(lengths: list[int], decoded: list[int], rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "machine": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2),
            "jax": jax.__version__,
            "date": datetime.date.today().isoformat(),
        }
    }
    for name in MIXERS:
        found[name] = {
            "prefill": growth(prefill, name, lengths, rounds),
            "decode": growth(decode, name, decoded, rounds),
        }
        shown = ", ".join(f"{form} {one['exponent']:.2f}" for form, one in found[name].items())
        print(f"{name:18} exponents: {shown}", flush=True)
    few, many = (compile_seconds(layers, rounds=2) for layers in (8, 64))
    found["compile a hybrid"] = {
        "8 layers, s": round(few, 2),
        "64 layers, s": round(many, 2),
        "ratio": round(many / few, 3),
    }
    print(f"compiling 64 layers takes {many / few:.2f} times as long as 8 ({few:.1f} s)")
    return found


def missed(found: dict[str, Any]) -> list[str]:
    """What is above its bound."""
    over = [
        f"{name}, {form}: exponent {one['exponent']}"
        for name in MIXERS
        if name != "attention"
        for form, one in found[name].items()
        if one["exponent"] > LINEAR
    ]
    ratio = found["compile a hybrid"]["ratio"]
    return over + ([f"compilation: ratio {ratio}"] if ratio > COMPILE_RATIO else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--decoded", nargs="+", type=int, default=[512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args()
    found = measure(options.lengths, options.decoded, options.rounds)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if over := missed(found):
        raise SystemExit("above the bounds: " + "; ".join(over))


if __name__ == "__main__":
    main()
