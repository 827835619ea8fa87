"""Gather and scatter: when indexing keeps rows apart, and how indices come to hold row numbers.

Three forms do: the batch as a batching dimension of the primitive, the row's own number as a
coordinate (``x[arange(b), i]``), and the batch taken whole while the index is the same for all.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.extend import core as jax_core

from ziggurat.serve.predict.row_states import (
    FREE,
    Coordinates,
    Equation,
    Free,
    Index,
    Mixed,
    Row,
    State,
    Symbol,
    elementwise,
    join,
)

Rule = Callable[[Symbol, Equation, list[State]], State | list[State]]
_COMPUTED = Mixed("indexing along the batch by a computed index")


def gather(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    """Row state of ``operand[indices]``."""
    (operand, indices), (result,) = equation.invars, equation.outvars
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    offsets = set(numbers.offset_dims)
    batch = [i for i in range(len(result.aval.shape)) if i not in offsets]
    taken = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [i for i in range(len(operand.aval.shape)) if i not in taken]
    state = symbol.viewed(given[0], operand.aval)
    if isinstance(state, Free):
        return _looked_up(given[1], batch, len(indices.aval.shape) - 1)
    if not isinstance(state, Row):
        return state if isinstance(state, Mixed) else _COMPUTED
    axis = state.axis
    if axis in numbers.operand_batching_dims:
        which = numbers.operand_batching_dims.index(axis)
        own = numbers.start_indices_batching_dims[which]
        return _with(state, given[1], own, batch[_place(own, indices)])
    if axis in kept and sizes[axis] == operand.aval.shape[axis]:
        if not isinstance(given[1], Free) or symbol.axes(indices.aval):
            return _COMPUTED
        at = numbers.offset_dims[kept.index(axis)]
        return Row(at, state.outer, state.inner)
    own = _own_coordinate(given[1], numbers.start_index_map, axis)
    if own is None or sizes[axis] != 1 or state != Row(axis):
        return _COMPUTED
    return Row(batch[_place(own, indices)])


def scatter(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    """Row state of ``operand.at[indices].set(updates)`` and similar operations."""
    operand, indices, updates = equation.invars[:3]
    if all(isinstance(state, Free) for state in given):
        named = any(symbol.axes(atom.aval) for atom in (operand, indices, updates))
        if not named:
            return FREE
    numbers = equation.params["dimension_numbers"]
    state = symbol.viewed(given[0], operand.aval)
    if not isinstance(state, Row):
        return state if isinstance(state, Mixed) else Mixed("a scatter of several rows into one")
    axis, windows = state.axis, numbers.update_window_dims
    batch = [i for i in range(len(updates.aval.shape)) if i not in windows]
    taken = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [i for i in range(len(operand.aval.shape)) if i not in taken]
    if axis in numbers.operand_batching_dims:
        which = numbers.operand_batching_dims.index(axis)
        own = numbers.scatter_indices_batching_dims[which]
        found = _with(state, given[1], own, axis)
        return _with(found, given[2], batch[_place(own, indices)], axis)
    if axis in kept and axis not in numbers.scatter_dims_to_operand_dims:
        at = windows[kept.index(axis)]
        whole = updates.aval.shape[at] == operand.aval.shape[axis]
        if whole and isinstance(given[1], Free) and not symbol.axes(indices.aval):
            return _with(state, given[2], at, axis)
        return _COMPUTED
    own = _own_coordinate(given[1], numbers.scatter_dims_to_operand_dims, axis)
    if own is None or axis not in numbers.inserted_window_dims or state != Row(axis):
        return _COMPUTED
    return _with(state, given[2], batch[_place(own, indices)], axis)


def _looked_up(indices: State, batch: list[int], last: int) -> State:
    """A table that is the same for all rows, at indices."""
    if isinstance(indices, Row):
        if indices.axis == last:
            return _COMPUTED
        return Row(batch[indices.axis], indices.outer, indices.inner)
    if isinstance(indices, (Index, Coordinates)):
        return Mixed("a table looked up by a row's number in the batch")
    return indices


def _with(state: State, other: State, axis: int, result: int) -> State:
    """Rows that meet rows of another operand along its ``axis``, as they lie in the result."""
    if not isinstance(state, Row):
        return state
    if isinstance(other, Mixed):
        return other
    if isinstance(other, Free) or other == Row(axis, state.outer, state.inner):
        return Row(result, state.outer, state.inner)
    return _COMPUTED


def _place(axis: int, indices: Any) -> int:
    """An axis of the indices among all but the last, which holds the coordinates."""
    assert axis < len(indices.aval.shape) - 1
    return axis


def _own_coordinate(indices: State, columns: Any, axis: int) -> int | None:
    """The axis of the indices along which rows pick themselves at an operand's axis."""
    if axis not in columns:
        return None
    column = list(columns).index(axis)
    if isinstance(indices, Index) and len(columns) == 1:
        return indices.axis
    if isinstance(indices, Coordinates) and column in indices.columns:
        return indices.axis
    return None


def concatenate(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    """Row state of arrays end to end; along the last axis this also puts coordinates beside one
    another."""
    axis, atoms = equation.params["dimension"], equation.invars
    if any(axis in symbol.axes(atom.aval) for atom in atoms):
        return Mixed("concatenate along the batch")
    if not any(isinstance(state, (Index, Coordinates)) for state in given):
        return join(given)
    columns, at, rows = set(), 0, set()
    for state, atom in zip(given, atoms):
        width = atom.aval.shape[axis]
        if isinstance(state, Index) and width == 1:
            columns.add(at)
        elif not isinstance(state, (Row, Free)):
            return Mixed("arithmetic with a row's number in the batch")
        if not isinstance(state, Free):
            whole = state if isinstance(state, Row) else Row(state.axis)  # type: ignore[union-attr]
            rows.add(whole)
        at += width
    last = axis == len(atoms[0].aval.shape) - 1
    if not last or len(rows) != 1:
        return Mixed("coordinates of rows along different axes")
    (row,) = rows
    return Coordinates(row.axis, frozenset(columns)) if row == Row(row.axis) else Mixed("a reshape")


def _literal(atom: Any, value: int) -> bool:
    return isinstance(atom, jax_core.Literal) and np.ndim(atom.val) == 0 and bool(atom.val == value)


def or_index(keeps: Callable[[Any], State | None]) -> Rule:
    """Wrap :func:`elementwise` so that it first tries the operations allowed on a row's number."""

    def rule(symbol: Symbol, equation: Equation, given: list[State]) -> State:
        if any(isinstance(state, Index) for state in given):
            found = keeps((equation, given))
            if found is not None:
                return found
        return elementwise(symbol, equation, given)

    return rule


def times_one(pair: Any) -> State | None:
    """Row state of ``1 * i`` and ``0 + i``, which ``arange`` writes."""
    equation, given = pair
    neutral = 1 if equation.primitive.name == "mul" else 0
    for literal, state in zip(equation.invars, reversed(given)):
        if isinstance(state, Index) and _literal(literal, neutral):
            return state
    return None


def below_zero(pair: Any) -> State | None:
    """Row state of ``i < 0``, by which indexing looks for numbers that count from the end."""
    equation = pair[0]
    return Free(false=True) if _literal(equation.invars[1], 0) else None


def converted(pair: Any) -> State | None:
    """Row state of a row's number as another integer type; one of fewer than 32 bits might wrap
    around."""
    equation, (state,) = pair
    kind = np.dtype(equation.params["new_dtype"])
    return state if kind.kind in "iu" and kind.itemsize >= 4 else None


def select(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    """Row state of a choice between values for each element; with a condition known to be false the
    first."""
    if given[0] == Free(false=True):
        return given[1]
    return elementwise(symbol, equation, given)
