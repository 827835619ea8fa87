"""The equations of a jaxpr in order, calls inlined, and what loops say of their length."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, Var

TRIPS, SHARE = re.compile(r"\btrips_(\d+)\b"), re.compile(r"\bshare_1_in_(\d+)\b")
"""Scopes by which code says what only the device knows, see :mod:`ziggurat.plan.work`."""
OWN_BODY = {"scan", "while", "cond", "shard_map", "pallas_call"}
"""Equations whose body is not inlined: it runs several times, on each device, or not at all."""
Equation = Any
"""A ``jax.extend.core.JaxprEqn``. JAX types its operands as abstract values without a shape."""
MATMULS = ("dot_general", "ragged_dot_general", "ragged_dot", "conv_general_dilated")
MOVES = ("gather", "dynamic_slice", "dynamic_update_slice")
"""Primitives that move a part of an array."""
BARRIERS = {"concatenate", "sort", "cumsum", "cumlogsumexp", "cummax", "top_k", "custom_call"}
"""Other primitives that fuse with none before or after them."""


class Flat(NamedTuple):
    """An equation of a jaxpr after calls are inlined, with its variables numbered."""

    equation: Equation
    inputs: list[int | None]
    outputs: list[int]
    scope: str


def flatten(
    jaxpr: Jaxpr, numbers: dict[Var, int], sizes: dict[int, float], scope: str
) -> Iterator[Flat]:
    """Inline calls of a jaxpr and return its equations in order; fills ``numbers`` and the bytes of
    each variable."""

    def number(variable: Any) -> int | None:
        if hasattr(variable, "val"):  # a literal
            return None
        if variable not in numbers:
            numbers[variable] = len(sizes)
            sizes[numbers[variable]] = size_bytes(variable.aval)
        found: int = numbers[variable]
        return found

    for equation in jaxpr.eqns:
        name = equation.primitive.name
        where = "/".join(part for part in (scope, str(equation.source_info.name_stack)) if part)
        inner = None if name in OWN_BODY else called(equation)
        if inner is None:
            inputs = [number(v) for v in equation.invars]
            yield Flat(equation, inputs, [number(v) or 0 for v in equation.outvars], where)
            continue
        inside: dict[Var, int] = {}
        given = equation.invars[len(equation.invars) - len(inner.invars) :]
        for own, outer in zip(inner.invars, given):
            outer_number = number(outer)
            if outer_number is not None:
                inside[own] = outer_number
        yield from flatten(inner, inside, sizes, where)
        for own, outer in zip(inner.outvars, equation.outvars):
            if not hasattr(own, "val") and own in inside:
                numbers[outer] = inside[own]


def called(equation: Equation) -> Jaxpr | None:
    """The body of a call (``jit``, ``checkpoint``, custom derivatives), scan or ``shard_map``."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in equation.params:
            return opened(equation.params[key])
    return None


def declared(pattern: re.Pattern[str], scope: str) -> int | None:
    """The number that the innermost matching named scope carries."""
    found = pattern.findall(scope)
    return int(found[-1]) if found else None


def trips(equation: Equation) -> int | None:
    """Number of iterations of a loop that counts by constant steps between constants; ``None`` if
    it is not known. (``fori_loop`` between constants is a scan.)"""
    params = equation.params
    test, turn = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    if len(test.eqns) != 1 or test.eqns[0].primitive.name != "lt":
        return None
    counter, limit = test.eqns[0].invars
    carried = test.invars[params["cond_nconsts"] :]
    place = next((i for i, one in enumerate(carried) if one is counter), None)
    if place is None:
        return None
    start = equation.invars[params["cond_nconsts"] + params["body_nconsts"] + place]
    step = _step(turn, turn.invars[params["body_nconsts"] + place], turn.outvars[place])
    if not step or not hasattr(limit, "val") or not hasattr(start, "val"):
        return None
    return max(0, -(-(int(limit.val) - int(start.val)) // step))


def _step(turn: Any, before: Any, after: Any) -> int | None:
    """By how much a loop's body raises one of its carried values, where that is a constant."""
    for equation in turn.eqns:
        if equation.outvars[0] is after and equation.primitive.name == "add":
            numbers = [int(v.val) for v in equation.invars if hasattr(v, "val")]
            same = any(v is before for v in equation.invars)
            return numbers[0] if numbers and same else None
    return None


def size_bytes(aval: Any) -> float:
    """Bytes of an array; 0 of a token or key without a type."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or not hasattr(aval, "size"):
        return 0.0
    return float(aval.size) * getattr(dtype, "itemsize", 4)


def body(equation: Equation) -> Jaxpr:
    """The jaxpr of a scan or ``shard_map``."""
    return opened(equation.params["jaxpr"])


def opened(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """The jaxpr inside a closed jaxpr."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
