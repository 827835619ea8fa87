"""Memory that attention and experts need beyond the outputs of a layer's projections.

A kernel that keeps its scores on the chip needs nothing; the plain form writes them all. Experts
that are cut over a mesh axis run on the tokens of all its devices. Both are read from the program:
of the equations in a named scope those arrays count that a matmul or a move reads or writes, each
from where it is made to where it is used last. What lies between two matmuls is fused and is not
written. Bodies of ``shard_map`` show what one device has; elsewhere arrays are cut by ``ways``.
"""

import itertools
import re

from jax.extend.core import Jaxpr, Var

from ziggurat.plan.equations import (
    BARRIERS,
    MATMULS,
    MOVES,
    OWN_BODY,
    Flat,
    flatten,
    opened,
)

_COLLECTIVES = ("all_gather", "reduce_scatter", "psum_scatter", "all_to_all", "psum")
_VIEWS = {"reshape", "squeeze", "expand_dims", "broadcast_in_dim", "stop_gradient", "copy"}


def peak_bytes(jaxpr: Jaxpr, scope: str, ways: float, *, matmuls_only: bool = False) -> float:
    """Largest number of bytes alive at once on a device in one run of a scope, over all its bodies.

    Args:
        jaxpr: of the whole step.
        scope: a name given by ``jax.named_scope``.
        ways: devices over which arrays outside ``shard_map`` are cut.
        matmuls_only: count operands and results of matmuls alone.
    """
    return _level(jaxpr, re.compile(rf"\b{scope}\b"), "", ways, matmuls_only)


def _level(
    jaxpr: Jaxpr, scope: re.Pattern[str], outer: str, ways: float, matmuls_only: bool
) -> float:
    """The most bytes at once while one body runs, bodies inside it included."""
    numbers: dict[Var, int] = {}
    sizes: dict[int, float] = {}
    flat = list(flatten(jaxpr, numbers, sizes, outer))
    results = {numbers[v] for v in jaxpr.outvars if v in numbers}
    live = _live(flat, scope, sizes, results, matmuls_only)
    most = max(live) / ways
    for at, entry in enumerate(flat):
        for inner, inside in _bodies(entry, ways):
            beside = live[at] / ways
            most = max(most, beside + _level(inner, scope, entry.scope, inside, matmuls_only))
    return most


def _bodies(entry: Flat, ways: float) -> list[tuple[Jaxpr, float]]:
    """The bodies of an equation, and over how many devices arrays in them are cut."""
    params, name = entry.equation.params, entry.equation.primitive.name
    if name == "cond":
        return [(opened(branch), ways) for branch in params["branches"]]
    key = {"scan": "jaxpr", "shard_map": "jaxpr", "while": "body_jaxpr"}.get(name)
    return [] if key is None else [(opened(params[key]), 1.0 if name == "shard_map" else ways)]


def _live(
    flat: list[Flat],
    scope: re.Pattern[str],
    sizes: dict[int, float],
    results: set[int],
    matmuls_only: bool,
) -> list[float]:
    """By equation, the bytes of arrays that are made in the scope and written to memory."""
    source: dict[int, int] = {}
    born: dict[int, int] = {}
    last: dict[int, int] = {}
    written: set[int] = set()
    fused: list[tuple[list[int], list[int]]] = []
    for at, entry in enumerate(flat):
        if not scope.search(entry.scope):
            continue
        name = entry.equation.primitive.name
        parts = [source.get(i, i) for i in entry.inputs if i is not None]
        last.update(dict.fromkeys(parts, at))
        if name in _VIEWS and parts:
            source.update(dict.fromkeys(entry.outputs, parts[0]))
            continue
        # what a body makes is counted inside it while it runs
        born.update(dict.fromkeys(entry.outputs, at + (name in OWN_BODY)))
        last.update({i: len(flat) if i in results else at for i in entry.outputs})
        if _writes(name, matmuls_only):
            written.update(parts, entry.outputs)
        else:
            fused.append((parts, entry.outputs))
    for parts, made in reversed(fused):  # what is not written is made anew from its parts
        until = max((last.get(i, 0) for i in made if i not in written), default=0)
        last.update({i: max(last[i], until) for i in parts})
    change = [0.0] * (len(flat) + 2)
    for i in written & born.keys():
        change[born[i]] += sizes.get(i, 0.0)
        change[max(last[i], born[i]) + 1] -= sizes.get(i, 0.0)
    return list(itertools.accumulate(change))


def _writes(name: str, matmuls_only: bool) -> bool:
    if name in MATMULS or matmuls_only:
        return name in MATMULS
    moves = name in MOVES or name in BARRIERS or name.startswith("scatter")
    return moves or name in _COLLECTIVES or name in OWN_BODY
