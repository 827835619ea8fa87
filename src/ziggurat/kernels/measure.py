"""Timing the implementations of an operation against each other, in turn, forward and backward."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ziggurat.core.registry import Registry


class Case(NamedTuple):
    """An operation at one size, ready to be timed."""

    plain: str
    """The implementation that others are compared with."""
    names: tuple[str, ...]
    """Implementations that serve here, the plain one among them."""
    call: Callable[..., jax.Array]
    """``(name, *arrays)`` to an array whose sum is differentiated."""
    arrays: tuple[Array, ...]
    """Arrays that the gradient is taken by."""


CASES: Registry[Callable[[int], Case]] = Registry("operation")
"""Operation -> from a number of rows to its case; an operation that can be tuned adds itself."""
SIZES: dict[str, tuple[int, ...]] = {}
"""Operation -> numbers of rows at which ``tune`` measures it, powers of two."""


def case(operation: str, sizes: Sequence[int]) -> Callable[[Callable[[int], Case]], Any]:
    """Decorator that registers an operation for ``bench`` and ``tune``."""

    def add(make: Callable[[int], Case]) -> Callable[[int], Case]:
        SIZES[operation] = tuple(sizes)
        CASES.add(operation, make)
        return make

    return add


def times(one: Case, rounds: int, least_s: float = 0.02) -> Mapping[str, list[float]]:
    """Time value and gradient of each implementation, one measurement a round in turn, in seconds.

    Args:
        one: what to run.
        rounds: measurements of each.
        least_s: a measurement repeats short calls until it has lasted so long.
    """
    programs = {name: _compiled(one, name) for name in one.names}
    repeats = {}
    for name, program in programs.items():
        _run(program, one.arrays, 1)  # compiles
        repeats[name] = max(1, round(least_s / max(_run(program, one.arrays, 1), 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            found[name].append(_run(program, one.arrays, repeats[name]))
    return found


def medians(found: Mapping[str, list[float]]) -> dict[str, float]:
    """Median time in seconds of each implementation."""
    return {name: statistics.median(values) for name, values in found.items()}


def draw(*shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Draw standard normal float32 arrays from a fixed seed."""
    generator = np.random.default_rng(0)
    return tuple(jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes)


def _compiled(one: Case, name: str) -> Callable[..., Any]:
    def total(*arrays: jax.Array) -> jax.Array:
        return one.call(name, *arrays).sum()

    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(one.arrays)))))


def _run(program: Callable[..., Any], arrays: tuple[Array, ...], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(program(*arrays))
    return (time.perf_counter() - start) / repeats
