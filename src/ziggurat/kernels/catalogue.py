"""Every operation with its implementations: which serve on this machine, and why others do not.

Importing this module imports all operations, so that their cases for timing are there too.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ziggurat.core.registry import Registry
from ziggurat.kernels import attention, cross_entropy, grouped_matmul, linear, paged_attention
from ziggurat.kernels.cpu.library import library
from ziggurat.kernels.linear import quantized
from ziggurat.kernels.measure import Case, case, draw

OPERATIONS: dict[str, Registry] = {
    "attention": attention.IMPLEMENTATIONS,
    "linear": linear.IMPLEMENTATIONS,
    "cross_entropy": cross_entropy.IMPLEMENTATIONS,
    "log_probs": cross_entropy.LOG_PROBS,
    "grouped_matmul": grouped_matmul.IMPLEMENTATIONS,
    "paged_attention": paged_attention.IMPLEMENTATIONS,
    "quantized_product": quantized.IMPLEMENTATIONS,
}
"""Operations that choose among implementations."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One implementation of one operation."""

    operation: str
    implementation: str
    usable: bool
    why_not: str
    """Reason that it is not usable here; empty where it is."""


def entries() -> list[Implementation]:
    """All implementations, in the order of :data:`OPERATIONS`."""
    found = []
    for operation, registry in OPERATIONS.items():
        for name in registry:
            why_not = _why_not(name)
            found.append(Implementation(operation, name, not why_not, why_not))
    return found


def _why_not(name: str) -> str:
    platform = jax.default_backend()
    if name == "splash" and platform != "tpu":
        return f"for TPU; this is {platform} (there is an interpreter, for tests)"
    if name in ("cpu", "stored"):
        return library().why_not if platform == "cpu" else f"for CPU; this is {platform}"
    return ""


def _usable(operation: str, *wanted: str) -> tuple[str, ...]:
    serving = {x.implementation for x in entries() if x.operation == operation and x.usable}
    return tuple(name for name in wanted if name in serving)


@case("attention", (16, 32, 64, 128, 256, 512, 1024))
def _attention(rows: int) -> Case:
    """Causal rows of 8 heads of 64 channels, all tokens of four rows."""
    positions = jnp.tile(jnp.arange(rows)[None], (4, 1))
    mask = attention.AttentionMask(positions, positions, aligned=True)

    def call(name: str, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attention.attention(query, key, value, mask, scale=0.125, implementation=name)

    names = _usable("attention", "grouped", "blocked", "cpu")
    return Case("grouped", names, call, draw(*[(4, rows, 8, 64)] * 3))


@case("linear", (1, 4, 16, 64, 256, 1024, 2048))
def _linear(rows: int) -> Case:
    """512 channels to 1024."""

    def call(name: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return linear.project(x, kernel, implementation=name)

    return Case("flat", _usable("linear", "flat", "cpu"), call, draw((rows, 512), (512, 1024)))


@case("cross_entropy", (64, 512, 2048))
def _cross_entropy(rows: int) -> Case:
    """A vocabulary of 8192 over 512 channels."""
    targets, weights = jnp.arange(rows) % 8192, jnp.ones(rows)

    def call(name: str, hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return cross_entropy.linear_cross_entropy(
            hidden, weight, targets, weights, chunk_tokens=1024, implementation=name
        ).loss

    names = _usable("cross_entropy", "chunked", "cpu")
    return Case("chunked", names, call, draw((rows, 512), (8192, 512)))
