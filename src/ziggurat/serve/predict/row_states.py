"""How a value of a traced program depends on the rows of the batch."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

Equation = Any
"""A ``jax.extend.core.JaxprEqn``. JAX types its operands as abstract values without a shape, though
all of a traced program have one."""


@dataclasses.dataclass(frozen=True)
class Free:
    """Row state of a value that depends on no row and not on their number; equal along every axis
    that names the batch."""

    false: bool = False
    """Known to be False everywhere."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Row state of a value with row ``i`` at place ``i`` of an axis, and nothing of other rows
    there.

    An axis that was merged with others by a reshape has size ``outer * b * inner``, row-major.
    """

    axis: int
    outer: Any = 1
    inner: Any = 1


@dataclasses.dataclass(frozen=True)
class Index:
    """Row state of a value that is the row's number at every place of an axis; it may only be used
    for indexing."""

    axis: int


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Row state of indices for a gather or scatter; the columns named hold the row's number."""

    axis: int
    columns: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Whole:
    """Row state of a value that belongs to one row, inside a loop over rows."""


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Row state of a value that may depend on several rows, on a row's place, or on their
    number."""

    reason: str = dataclasses.field(compare=False)


State = Free | Row | Index | Coordinates | Whole | Mixed
FREE, WHOLE = Free(), Whole()


class Symbol:
    """The batch dimension's symbol, looked for in sizes.

    Args:
        size: the symbolic size.
    """

    def __init__(self, size: Any):
        self._size = size
        self._found = re.compile(rf"\b{re.escape(str(size))}\b")

    def in_size(self, size: Any) -> bool:
        """Whether a size contains the symbol."""
        return not isinstance(size, int) and bool(self._found.search(str(size)))

    def alone(self, size: Any) -> bool:
        """Whether a size is the symbol and nothing more."""
        return str(size) == str(self._size)

    def axes(self, aval: Any) -> list[int]:
        """Axes of a value whose sizes contain the symbol."""
        return [i for i, size in enumerate(getattr(aval, "shape", ())) if self.in_size(size)]

    def viewed(self, state: State, aval: Any) -> State:
        """A value that is equal along its one batch axis, seen as one that holds rows there."""
        axes = self.axes(aval)
        if not isinstance(state, Free) or not axes:
            return state
        inner = quotient(aval.shape[axes[0]], self._size)
        if len(axes) != 1 or inner is None:
            return Mixed("indexing of the batch with itself")
        return Row(axes[0], 1, inner)


def quotient(whole: Any, part: Any) -> Any:
    """``whole / part`` of sizes, or None if that is no whole number or cannot be known."""
    try:
        found = whole // part
        return found if found * part == whole else None
    except Exception:  # jax.export's error for sizes that cannot be compared
        return None


def join(states: Iterable[State]) -> State:
    """Row state of a value that is one of several, all of one shape."""
    found: State | None = None
    for state in states:
        if found is None or found == state:
            found = state
        elif isinstance(found, Mixed) or isinstance(state, Mixed):
            return found if isinstance(found, Mixed) else state
        elif isinstance(found, Free) and isinstance(state, Free):
            found = FREE
        elif isinstance(found, Free) and isinstance(state, Row):
            found = state
        elif not (isinstance(state, Free) and isinstance(found, Row)):
            return Mixed("values that hold rows along different axes")
    return FREE if found is None else found


def elementwise(symbol: Symbol, equation: Any, given: list[State]) -> State:
    """Row state of an elementwise operation: elements at one place meet; scalars meet all."""
    mixed = next((state for state in given if isinstance(state, Mixed)), None)
    if mixed is not None:
        return mixed
    states = [s for s, atom in zip(given, equation.invars) if atom.aval.shape]
    if any(isinstance(state, (Index, Coordinates)) for state in states):
        return Mixed("arithmetic with a row's number in the batch")
    return join(states)
