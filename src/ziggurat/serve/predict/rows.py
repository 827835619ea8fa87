"""Whether rows of a batch depend on one another, decided on the traced program.

Every value of the program gets a state: free of all rows, holding row ``i`` at place ``i`` of one
axis, or mixed. A primitive keeps rows apart if it acts along no axis whose size names the batch.
The analysis is sound and not complete: what it does not know counts as mixed, with the name of the
primitive as the reason.

>>> import jax
>>> import jax.numpy as jnp
>>> from jax import export
>>> def trace(function):
...     shape = export.symbolic_shape("b,4")
...     return jax.jit(function).trace(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
>>> print(mixing(trace(lambda x: x / x.max(1, keepdims=True)), [True]))
[None]
>>> print(mixing(trace(lambda x: x / x.max(0, keepdims=True)), [True]))
['reduce_max along the batch']
"""

from collections.abc import Sequence
from typing import Any

from jax.extend import core as jax_core

from ziggurat.serve.predict.row_rules import RULES
from ziggurat.serve.predict.row_states import (
    FREE,
    WHOLE,
    Equation,
    Free,
    Index,
    Mixed,
    Row,
    State,
    Symbol,
    join,
)

_CALLS = frozenset(
    [
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "remat",
        "remat2",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
    ]
)
"""Primitives that evaluate a program of their own on exactly their operands."""


def mixing(program: jax_core.ClosedJaxpr, batched: Sequence[bool]) -> list[str | None]:
    """Reason for each output why its rows depend on one another, or ``None`` if they do not.

    Args:
        program: traced with symbolic shapes.
        batched: for every argument whether the batch is its first dimension; no other dimension
            of an argument may name it.
    """
    sizes = (aval.shape[0] for aval, flag in zip(program.in_avals, batched) if flag)
    walk = _Walk(Symbol(next(sizes, None)))
    given: list[State] = [Row(0) if flag else FREE for flag in batched]
    states = walk.closed(program, given)
    return [walk.verdict(state, aval) for state, aval in zip(states, program.out_avals)]


class _Walk:
    """Evaluates a program on states."""

    def __init__(self, symbol: Symbol):
        self.symbol = symbol

    def verdict(self, state: State, aval: Any) -> str | None:
        if isinstance(state, Mixed):
            return state.reason
        if isinstance(state, Row):
            return (
                None if state == Row(0) else "an output whose rows do not lie along its first axis"
            )
        if isinstance(state, Free):
            return None if self.symbol.axes(aval) == [0] else "an output without rows"
        return "a row's number in the batch"

    def closed(self, program: jax_core.ClosedJaxpr, given: Sequence[State]) -> list[State]:
        return self.program(program.jaxpr, given)

    def program(self, jaxpr: Any, given: Sequence[State]) -> list[State]:
        known: dict[Any, State] = dict(zip(jaxpr.invars, given, strict=True))
        known |= dict.fromkeys(jaxpr.constvars, FREE)

        def read(atom: Any) -> State:
            return FREE if isinstance(atom, jax_core.Literal) else known[atom]

        for equation in jaxpr.eqns:
            found = self.equation(equation, [read(atom) for atom in equation.invars])
            known |= dict(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Equation, given: list[State]) -> list[State]:
        name, params = equation.primitive.name, equation.params
        mixed = next((state for state in given if isinstance(state, Mixed)), None)
        if mixed is not None and name != "select_n" and not self._nested(name):
            return [mixed] * len(equation.outvars)
        if any(state is WHOLE for state in given):
            return [self._of_one_row(equation, given)] * len(equation.outvars)
        if name in _CALLS:
            return self.program(_inner(params), given)
        if name == "cond":
            return self._cond(params["branches"], given)
        if name == "while":
            return self._while(equation, given)
        if name == "scan":
            return self._scan(equation, given)
        if name == "custom_linear_solve":
            before, count = params["const_lengths"], params["const_lengths"].solve
            start = before.matvec + before.vecmat
            consts, right = given[start : start + count], given[sum(before) :]
            return self.closed(params["jaxprs"].solve, [*consts, *right])
        rule = RULES.get(name)
        if rule is not None:
            found = rule(self.symbol, equation, given)
        elif not self._names_rows(equation) and all(isinstance(s, Free) for s in given):
            found = FREE
        else:
            found = Mixed(f"{name}, which is not known to keep rows apart")
        if isinstance(found, list):
            return found
        return [found] * len(equation.outvars)

    def _nested(self, name: str) -> bool:
        return name in _CALLS or name in ("scan", "while", "cond", "custom_linear_solve")

    def _names_rows(self, equation: Equation) -> bool:
        """Whether any operand or result has a dimension that names the batch, inside too."""
        atoms = (*equation.invars, *equation.outvars)
        if any(self.symbol.axes(atom.aval) for atom in atoms):
            return True
        if equation.primitive.name == "dim_as_value":
            return self.symbol.in_size(equation.params["dim"])
        return any(
            self._names_rows(deeper)
            for jaxpr in _jaxprs(equation.params.values())
            for deeper in jaxpr.eqns
        )

    def _of_one_row(self, equation: Equation, given: list[State]) -> State:
        """Anything may be done with one row, as long as no other comes in."""
        mixed = next((state for state in given if isinstance(state, Mixed)), None)
        if mixed is not None:
            return mixed
        if self._names_rows(equation) or not all(s is WHOLE or isinstance(s, Free) for s in given):
            return Mixed(f"{equation.primitive.name} of one row with all")
        return WHOLE

    def _cond(self, branches: Sequence[Any], given: list[State]) -> list[State]:
        choice, operands = given[0], given[1:]
        if not isinstance(choice, Free):
            reason = choice.reason if isinstance(choice, Mixed) else "cond on a row's number"
            return [Mixed(reason)] * len(branches[0].out_avals)
        found = [self.closed(branch, operands) for branch in branches]
        return [join(states) for states in zip(*found, strict=True)]

    def _while(self, equation: Equation, given: list[State]) -> list[State]:
        params = equation.params
        first, second = params["cond_nconsts"], params["body_nconsts"]
        test, body = given[:first], given[first : first + second]
        carry = self._settle(
            given[first + second :], lambda states: self.closed(params["body_jaxpr"], body + states)
        )
        (goes_on,) = self.closed(params["cond_jaxpr"], test + carry)
        if isinstance(goes_on, Free):
            return carry
        reason = goes_on.reason if isinstance(goes_on, Mixed) else "while on a row's number"
        return [Mixed(f"a while loop that ends by {reason}")] * len(carry)

    def _scan(self, equation: Equation, given: list[State]) -> list[State]:
        params = equation.params
        consts, carries = params["num_consts"], params["num_carry"]
        fixed, carry, xs = (
            given[:consts],
            given[consts : consts + carries],
            given[consts + carries :],
        )
        over_rows = self.symbol.in_size(params["length"])
        steps = [self._step(state, over_rows) for state in xs]
        program = params["jaxpr"]
        if over_rows:
            mixed = Mixed("a scan along the batch that carries a value from row to row")
            found = self.closed(program, [*fixed, *[mixed] * carries, *steps])
            ys = [self._stacked_rows(state) for state in found[carries:]]
            return [mixed] * carries + ys
        carry = self._settle(
            carry, lambda states: self.closed(program, [*fixed, *states, *steps])[:carries]
        )
        found = self.closed(program, [*fixed, *carry, *steps])
        return carry + [_moved(state, 1) for state in found[carries:]]

    def _step(self, state: State, over_rows: bool) -> State:
        """The state of one slice along the first axis."""
        if not over_rows:
            return _moved(state, -1)
        if state == Row(0):
            return WHOLE
        return state if isinstance(state, (Free, Mixed)) else Mixed("a scan along the batch")

    def _stacked_rows(self, state: State) -> State:
        if state is WHOLE:
            return Row(0)
        return state if isinstance(state, (Free, Mixed)) else Mixed("a scan along the batch")

    def _settle(self, carry: list[State], step: Any) -> list[State]:
        """The states of a loop's carry after any number of steps."""
        while True:
            after = [join(pair) for pair in zip(carry, step(carry), strict=True)]
            if after == carry:
                return carry
            carry = after


def _moved(state: State, by: int) -> State:
    """The state of a value that gains or loses its first axis."""
    if isinstance(state, Row):
        return Row(state.axis + by, state.outer, state.inner)
    if isinstance(state, Index):
        return Index(state.axis + by)
    return state if isinstance(state, (Free, Mixed)) else Mixed("a scan of coordinates of rows")


def _inner(params: dict[str, Any]) -> Any:
    return next(_jaxprs(params.values()))


def _jaxprs(values: Any) -> Any:
    """The programs among a primitive's parameters."""
    for value in values:
        if isinstance(value, jax_core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, jax_core.Jaxpr):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
