"""Work of a program: FLOPs and bytes, counted by walking its jaxpr.

XLA's own figures cannot be used: it counts the body of a scan once and sees nothing inside a Pallas
kernel. Here a scan counts as often as it runs, and a kernel by its own body and grid. The count is
of the whole program over all devices, before XLA has optimised it:

* matmuls: 2 FLOPs per multiply-add, each operand read and each result written once;
* element-wise operations and reductions: no FLOPs, and the traffic of perfect fusion: what lies
  between two matmuls is one pass over memory, reading its inputs and writing what is used outside;
* recomputation (remat) is in the jaxpr and so counts;
* a ``while`` counts as often as its counter says; where only the device knows, the code that makes
  the loop says how often it is expected to run, by ``jax.named_scope("trips_N")``, and which part
  of a matmul's rows is no padding, by ``jax.named_scope("share_1_in_N")``. A loop with matmuls
  in it of which nothing is known is an error rather than a wrong figure.

>>> import jax, jax.numpy as jnp
>>> def program(x, w):
...     return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]
>>> x, w = jax.ShapeDtypeStruct((4, 8), "float32"), jax.ShapeDtypeStruct((3, 8, 8), "float32")
>>> total_flops(operations(jax.jit(program).trace(x, w).jaxpr)) == 3 * 2 * 4 * 8 * 8
True
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, Var

from ziggurat.core.errors import PlanError
from ziggurat.plan.equations import (
    BARRIERS,
    MATMULS,
    SHARE,
    TRIPS,
    Equation,
    Flat,
    body,
    declared,
    flatten,
    size_bytes,
    trips,
)

MATMUL, ATTENTION, MEMORY, OPTIMIZER = "matmul", "attention", "memory-bound", "optimizer"
KINDS: tuple[str, ...] = (MATMUL, ATTENTION, MEMORY, OPTIMIZER)
"""Where time goes: matmuls with weights, scores and mixing of attention, the rest, the update."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """One kind of operation in the program; figures are of one execution, over all devices."""

    kind: str
    """One of :data:`KINDS`."""
    name: str
    """Primitive or kernel."""
    dtype: str
    """Type of the operands of a matmul; empty elsewhere."""
    flops: float
    bytes: float
    count: float
    """Executions in one step."""


class KernelWork(NamedTuple):
    """Share of a Pallas kernel's grid that does work, for kernels that skip masked blocks."""

    pattern: str
    """Regular expression for the kernel's name."""
    share: Callable[[tuple[int, ...], str], float]
    """From the grid and the name to the share of grid points that do work."""


KERNELS: list[KernelWork] = []
"""Kernels that skip part of their grid; :func:`register_kernel` adds to them."""

_SCOPES = {"optimizer": OPTIMIZER, "attend": ATTENTION}
"""``jax.named_scope`` in ``train.step`` and ``kernels.attention`` -> kind."""
_MOVES = {
    "gather": lambda e: 2 * size_bytes(e.outvars[0].aval),
    "dynamic_slice": lambda e: 2 * size_bytes(e.outvars[0].aval),
    "dynamic_update_slice": lambda e: 2 * size_bytes(e.invars[1].aval),
}
_FREE = {"iota", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "stop_gradient"}


def register_kernel(pattern: str, share: Callable[[tuple[int, ...], str], float]) -> None:
    """Register the share of its grid for which a Pallas kernel does work, e.g. under a causal
    mask."""
    KERNELS.append(KernelWork(pattern, share))


def _splash_share(grid: tuple[int, ...], name: str) -> float:
    """Blocks on and below the diagonal; under a window splash has shrunk the grid itself."""
    n, other = (grid[-1], grid[-3]) if "_dkv_" in name else (grid[-2], grid[-1])
    return (n + 1) / (2 * n) if n == other else 1.0


register_kernel(r"splash_m[hq]a_", _splash_share)


def operations(closed_jaxpr: ClosedJaxpr) -> list[Operation]:
    """Every operation of a program, equal ones gathered with their count.

    Args:
        closed_jaxpr: of ``jax.jit(f).trace(*args).jaxpr``.
    """
    walk = _Walk()
    walk.level(closed_jaxpr.jaxpr, 1.0, "")
    return [
        Operation(kind, name, dtype, flops, size, count)
        for (kind, name, dtype, flops, size), count in walk.found.items()
    ]


def total_flops(found: Iterable[Operation], kind: str | None = None) -> float:
    """FLOPs of one step, of one kind or all."""
    return float(sum(o.flops * o.count for o in found if kind in (None, o.kind)))


class _Walk:
    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str, float, float], float] = {}

    def add(self, kind: str, name: str, dtype: str, flops: float, size: float, times: float):
        if flops or size:
            key = kind, name, dtype, flops, size
            self.found[key] = self.found.get(key, 0.0) + times

    def level(self, jaxpr: Jaxpr, times: float, scope: str) -> None:
        """One body: what runs ``times`` times."""
        sizes: dict[int, float] = {}
        numbers: dict[Var, int] = {}
        flat = list(flatten(jaxpr, numbers, sizes, scope))
        results = {numbers[v] for v in jaxpr.outvars if v in numbers}
        fused = []
        for entry in flat:
            if not self._barrier(entry, times):
                fused.append(entry)
        for kind, size in _fused_traffic(flat, fused, sizes, results):
            self.add(kind, "fused", "", 0.0, size, times)

    def _barrier(self, entry: Flat, times: float) -> bool:
        """Count an equation that fuses with no other; whether it is one."""
        equation, name = entry.equation, entry.equation.primitive.name
        if name in MATMULS:
            kind = _kind(entry.scope, MATMUL)
            dtype = str(equation.invars[0].aval.dtype)
            # in a loop whose length is declared, that length knows of the padding
            parts = 1 if TRIPS.search(entry.scope) else declared(SHARE, entry.scope) or 1
            flops = _dot_flops(equation) / parts
            self.add(kind, name, dtype, flops, _traffic(equation) / parts, times)
        elif name == "pallas_call":
            self._kernel(entry, times)
        elif name == "scan":
            self.level(body(equation), times * equation.params["length"], entry.scope)
        elif name == "while":
            self._loop(entry, times)
        elif name == "cond":
            self._dearest(equation.params["branches"], times, entry.scope)
        elif name == "shard_map":
            self.level(body(equation), times * equation.params["mesh"].size, entry.scope)
        elif name in _MOVES or name.startswith("scatter") or name in BARRIERS:
            self.add(_kind(entry.scope, MEMORY), name, "", 0.0, _moved(equation), times)
        else:
            return False
        return True

    def _loop(self, entry: Flat, times: float) -> None:
        """A loop's body as often as it runs."""
        inner = entry.equation.params["body_jaxpr"].jaxpr
        turns: float | None = trips(entry.equation)
        if turns is None and (said := declared(TRIPS, entry.scope)) is not None:
            turns = said / (declared(SHARE, entry.scope) or 1)
        if turns is None:
            seen = _Walk()
            seen.level(inner, 1.0, entry.scope)
            if any(key[3] for key in seen.found):
                raise PlanError(
                    f"counting a loop at {entry.scope or 'the top'}",
                    found="a number of turns that only the device knows",
                    expected="a counted loop, or one that says how often it runs",
                    fix='put jax.named_scope("trips_N") around it',
                )
            turns = 1.0  # moves a little data, such as a search
        self.level(inner, times * turns, entry.scope)

    def _kernel(self, entry: Flat, times: float) -> None:
        params = entry.equation.params
        name = str(params.get("name") or "pallas_call")
        estimate = params.get("cost_estimate")
        if estimate is not None:
            flops, size = float(estimate.flops), float(estimate.bytes_accessed)
        else:
            inner, grid = _Walk(), tuple(params["grid_mapping"].grid)
            inner.level(params["jaxpr"], 1.0, "")
            body = sum(key[3] * count for key, count in inner.found.items())
            shares = [k.share(grid, name) for k in KERNELS if re.match(k.pattern, name)]
            flops = body * math.prod(grid) * math.prod(shares)
            size = _traffic(entry.equation)
        kind = _kind(entry.scope, MATMUL)
        self.add(kind, name, "bfloat16", flops, size, times)

    def _dearest(self, branches: Sequence[Any], times: float, scope: str) -> None:
        walks = []
        for branch in branches:
            walk = _Walk()
            walk.level(branch.jaxpr, times, scope)
            walks.append(walk)

        def cost(walk: _Walk) -> tuple[float, float]:
            items = walk.found.items()
            flops = sum(key[3] * count for key, count in items)
            return float(flops), float(sum(key[4] * count for key, count in items))

        for (kind, name, dtype, flops, size), count in max(walks, key=cost).found.items():
            self.add(kind, name, dtype, flops, size, count)


def _fused_traffic(
    flat: list[Flat], fused: list[Flat], sizes: dict[int, float], results: set[int]
) -> Iterator[tuple[str, float]]:
    """Bytes read and written by each group of connected element-wise equations that no matmul
    parts: joined are those with equally many matmuls before them."""
    depth: dict[int, int] = {}
    members = {id(entry) for entry in fused}
    group_of: dict[int, int] = {}
    parent: list[int] = []

    def root(group: int) -> int:
        while parent[group] != group:
            group = parent[group]
        return group

    level: list[int] = []
    for entry in flat:
        known = [i for i in entry.inputs if i is not None]
        deep = max((depth.get(i, 0) for i in known), default=0)
        if id(entry) not in members:
            depth.update(dict.fromkeys(entry.outputs, deep + 1))
            continue
        depth.update(dict.fromkeys(entry.outputs, deep))
        group = len(parent)
        parent.append(group)
        level.append(deep)
        for i in known:
            other = group_of.get(i)
            if other is not None and level[root(other)] == deep:
                parent[root(other)] = group
        group_of.update(dict.fromkeys(entry.outputs, group))

    reads: dict[int, set[int]] = collections.defaultdict(set)
    writes: dict[int, set[int]] = collections.defaultdict(set)
    kinds: dict[int, str] = {}
    for entry in flat:
        inside = id(entry) in members
        own = root(group_of[entry.outputs[0]]) if inside and entry.outputs else -1
        if inside and own >= 0 and entry.equation.primitive.name not in _FREE:
            kinds[own] = _kind(entry.scope, MEMORY)
        for i in entry.inputs:
            source = group_of.get(i) if i is not None else None
            source = None if source is None else root(source)
            if i is None or (inside and source == own):
                continue
            if inside:
                reads[own].add(i)
            if source is not None:
                writes[source].add(i)
    for i in results:
        if i in group_of:
            writes[root(group_of[i])].add(i)
    for group, kind in kinds.items():
        yield kind, float(sum(sizes[i] for i in (*reads[group], *writes[group])))


def _kind(scope: str, otherwise: str) -> str:
    for word, kind in _SCOPES.items():
        if re.search(rf"\b{word}\b", scope):
            return kind
    return otherwise


def _dot_flops(equation: Equation) -> float:
    """2 FLOPs per multiply-add."""
    left, right, out = (*(v.aval for v in equation.invars[:2]), equation.outvars[0].aval)
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        features = right.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * out.size * right.size / features
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * out.size * math.prod(left.shape[d] for d in contracted)
    numbers = params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    depth = math.prod(left.shape[d] for d in contracted)
    ragged = set(numbers.lhs_ragged_dimensions) & set(contracted)
    groups = equation.invars[2].aval.shape[-1] if ragged else 1
    return 2.0 * out.size / groups * depth


def _moved(equation: Equation) -> float:
    name = equation.primitive.name
    if name in _MOVES:
        return _MOVES[name](equation)
    if name.startswith("scatter"):
        return 3 * size_bytes(equation.invars[2].aval)
    return _traffic(equation)


def _traffic(equation: Equation) -> float:
    return float(sum(size_bytes(v.aval) for v in (*equation.invars, *equation.outvars)))
