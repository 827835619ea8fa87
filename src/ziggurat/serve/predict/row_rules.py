"""For each primitive, what becomes of rows: the table behind :mod:`ziggurat.serve.predict.rows`.

A rule gets the batch's symbol, the equation and its operands' states, and gives the state of the
results. Most say along which axes the primitive acts: one that names the batch makes the result
mixed; along all others rows stay apart.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ziggurat.serve.predict.row_indexing import (
    Rule,
    below_zero,
    concatenate,
    converted,
    gather,
    or_index,
    scatter,
    select,
    times_one,
)
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
    quotient,
)


def _names(text: str) -> list[str]:
    return text.split()


_ELEMENTWISE = _names(
    """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh
digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag
integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or
polygamma population_count pow random_clone random_fold_in random_gamma random_seed
random_unwrap random_wrap real reduce_precision regularized_incomplete_beta rem round rsqrt
select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
stop_gradient sub tan tanh threefry2x32 xor zeta
"""
)
"""Primitives that compute each element of the result from the same element of each operand; for
random keys, whose words are one more axis at the end, likewise."""

_LAST_TWO = _names(
    """
cholesky eig eigh geqrf hessenberg householder_product lu qr schur svd
triangular_solve tridiagonal tridiagonal_solve
"""
)


def acting(axes_of: Callable[[Equation], Sequence[Sequence[int]]], moved: Any = None) -> Rule:
    """Build a rule for primitives that act along some axes of their operands.

    Args:
        axes_of: from the equation the axes for each operand.
        moved: ``moved(equation, axis)`` is where an axis of the operands lies in the results.
    """

    def rule(symbol: Symbol, equation: Equation, given: list[State]) -> State:
        for atom, axes in zip(equation.invars, axes_of(equation)):
            if set(axes) & set(symbol.axes(atom.aval)):
                return Mixed(f"{equation.primitive.name} along the batch")
        state = elementwise(symbol, equation, given)
        if isinstance(state, Row) and moved is not None:
            return Row(moved(equation, state.axis), state.outer, state.inner)
        return state

    return rule


def _every(axes: Sequence[Any], equation: Equation) -> list[Sequence[int]]:
    return [[int(axis) for axis in axes]] * len(equation.invars)  # numpy's integers, at times


def _reduced(name: str) -> Rule:
    def moved(equation: Equation, axis: int) -> int:
        return axis - sum(int(other) < axis for other in equation.params[name])

    return acting(lambda equation: _every(equation.params[name], equation), moved)


def _along(name: str) -> Rule:
    def axes_of(equation: Equation) -> list[Sequence[int]]:
        axes = equation.params[name]
        return _every(axes if isinstance(axes, (tuple, list)) else (axes,), equation)

    return acting(axes_of)


def _last(count: int) -> Rule:
    def axes_of(equation: Equation) -> list[Sequence[int]]:
        sizes = (len(atom.aval.shape) for atom in equation.invars)
        return [range(max(0, size - count), size) for size in sizes]

    return acting(axes_of)


def _fft(symbol: Symbol, equation: Equation, given: list[State]) -> State | list[State]:
    return _last(len(equation.params["fft_lengths"]))(symbol, equation, given)


def _slice_axes(equation: Equation) -> list[Sequence[int]]:
    (operand,), p = equation.invars, equation.params
    strides = p["strides"] or (1,) * len(operand.aval.shape)
    parts = zip(operand.aval.shape, p["start_indices"], p["limit_indices"], strides)
    return [
        [i for i, (n, start, stop, step) in enumerate(parts) if (start, stop, step) != (0, n, 1)]
    ]


def _stack(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    state, axis = elementwise(symbol, equation, given), equation.params["axis"]
    if not isinstance(state, Row):
        return state
    return Row(state.axis + (axis <= state.axis), state.outer, state.inner)


def _tiled_axes(equation: Equation) -> list[Sequence[int]]:
    return [[i for i, count in enumerate(equation.params["reps"]) if count != 1]]


def _changed_axes(equation: Equation) -> list[Sequence[int]]:
    """Axes along which operand and result differ in size, or the padding is not nothing."""
    return [[i for i, c in enumerate(equation.params["padding_config"]) if tuple(c) != (0, 0, 0)]]


def _window_axes(equation: Equation) -> list[Sequence[int]]:
    p = equation.params
    rank = len(p["window_dimensions"])
    ones = (1,) * rank
    parts = zip(
        p["window_dimensions"],
        p["window_strides"],
        map(tuple, p["padding"]),
        p.get("base_dilation") or ones,
        p.get("window_dilation") or ones,
    )
    axes = [i for i, part in enumerate(parts) if part != (1, 1, (0, 0), 1, 1)]
    return _every(axes, equation)


def _dynamic_slice(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    operand, sizes = equation.invars[0].aval, equation.params["slice_sizes"]
    part = [i for i, (a, b) in enumerate(zip(operand.shape, sizes)) if a is not b and a != b]
    return _placed(symbol, equation, given, part, given[:1], given[1:])


def _dynamic_update_slice(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    shapes = (atom.aval.shape for atom in equation.invars[:2])
    part = [i for i, (a, b) in enumerate(zip(*shapes)) if a is not b and a != b]
    return _placed(symbol, equation, given, part, given[:2], given[2:])


def _placed(
    symbol: Symbol,
    equation: Equation,
    given: list[State],
    part: list[int],
    arrays: list[State],
    starts: list[State],
) -> State:
    """A slice at a computed place; along an axis that is taken whole the place is 0."""
    if set(part) & set(symbol.axes(equation.invars[0].aval)):
        return Mixed(f"{equation.primitive.name} along the batch")
    if any(not isinstance(state, Free) for state in starts):
        return Mixed(f"{equation.primitive.name} at a row's number")
    if any(isinstance(state, (Index, Coordinates)) for state in arrays):
        return Mixed("arithmetic with a row's number in the batch")
    return join(arrays)


def _broadcast(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    state, axes = given[0], equation.params["broadcast_dimensions"]
    if isinstance(state, Row):
        return Row(int(axes[state.axis]), state.outer, state.inner)
    if isinstance(state, Index):
        return Index(int(axes[state.axis]))
    if isinstance(state, Coordinates):
        return Mixed("arithmetic with a row's number in the batch")
    return state


def _transpose(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    (state,), order = given, equation.params["permutation"]
    if isinstance(state, Row):
        return Row(order.index(state.axis), state.outer, state.inner)
    if isinstance(state, Index):
        return Index(order.index(state.axis))
    return Mixed("a transpose of coordinates") if isinstance(state, Coordinates) else state


def _reshape(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    operand, (result,) = equation.invars[0].aval, equation.outvars
    before, after = operand.shape, result.aval.shape
    here, there = symbol.axes(operand), symbol.axes(result.aval)
    if isinstance(given[0], Free) and not here:
        return given[0]
    if isinstance(given[0], Coordinates) or len(here) != 1 or len(there) != 1:
        return Mixed("a reshape that merges the batch with itself")
    state, new = symbol.viewed(given[0], operand), there[0]
    if isinstance(state, Index):
        ones = all(size == 1 for i, size in enumerate(after) if i != new)
        return Index(new) if ones else Mixed("a reshape of a row's number")
    if not isinstance(state, Row):
        return state
    # In row-major order an element of row i stands at (p * b + i) * rest + r, p below `ahead`.
    ahead = math.prod(before[: state.axis]) * state.outer
    rest = state.inner * math.prod(before[state.axis + 1 :])
    outer = quotient(ahead, math.prod(after[:new]))
    inner = quotient(rest, math.prod(after[new + 1 :]))
    if outer is None or inner is None:
        return Mixed("a reshape across rows")
    moved = Row(new, outer, inner)
    # Equal along an axis that is the batch alone before and after: still equal along it.
    same = isinstance(given[0], Free) and moved == Row(new) and state == Row(state.axis)
    return given[0] if same else moved


def _dot(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    (contracted, batch), atoms = equation.params["dimension_numbers"], equation.invars[:2]
    for atom, axes in zip(atoms, contracted):
        if set(axes) & set(symbol.axes(atom.aval)):
            return Mixed("a product summed along the batch")
    ranks = [len(atom.aval.shape) for atom in atoms]
    places: list[State] = []
    for side, state in enumerate(given[:2]):
        if isinstance(state, (Index, Coordinates)):
            return Mixed("arithmetic with a row's number in the batch")
        if not isinstance(state, Row):
            continue
        if state.axis in batch[side]:
            at = list(batch[side]).index(state.axis)
        else:
            free = [i for i in range(ranks[side]) if i not in (*batch[side], *contracted[side])]
            at = len(batch[0]) + free.index(state.axis)
            if side == 1:
                at += ranks[0] - len(batch[0]) - len(contracted[0])
        places.append(Row(at, state.outer, state.inner))
    if len(set(places)) > 1:
        return Mixed("a product of rows with other rows")
    return join(places)


def _convolution(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    (image, kernel), p = given, equation.params
    numbers = p["dimension_numbers"]
    if isinstance(image, Free) and isinstance(kernel, Free):
        named = any(symbol.axes(atom.aval) for atom in equation.invars)
        return Mixed("a convolution along the batch") if named else FREE
    apart = isinstance(kernel, Free) and not symbol.axes(equation.invars[1].aval)
    if apart and isinstance(image, Row) and image.axis == numbers.lhs_spec[0]:
        others = len(symbol.axes(equation.invars[0].aval)) == 1
        if others and p["batch_group_count"] == 1:
            return Row(numbers.out_spec[0], image.outer, image.inner)
    return Mixed("a convolution along the batch")


def _iota(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    axis, (result,) = equation.params["dimension"], equation.outvars
    size = result.aval.shape[axis]
    if not symbol.in_size(size):
        return FREE
    return Index(axis) if symbol.alone(size) else Mixed("numbering along the batch")


def _dim_as_value(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    named = symbol.in_size(equation.params["dim"])
    return Mixed("the number of rows as a value") if named else FREE


def _random_keys(symbol: Symbol, equation: Equation, given: list[State]) -> State:
    """Bits or new keys for each of an array of keys; the new axes come last."""
    keys, result = equation.invars[0].aval, equation.outvars[0].aval
    new = [axis for axis in symbol.axes(result) if axis >= len(keys.shape)]
    if new or (isinstance(given[0], Free) and symbol.axes(keys)):
        return Mixed("random numbers drawn for all rows together")
    return elementwise(symbol, equation, given[:1])


def _barrier(symbol: Symbol, equation: Equation, given: list[State]) -> list[State]:
    return given


RULES: dict[str, Rule] = dict.fromkeys(_ELEMENTWISE, elementwise)
RULES |= dict.fromkeys(_LAST_TWO, _last(2))
RULES |= {
    name: _reduced("axes")
    for name in _names(
        """
reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin
"""
    )
}
RULES |= {
    name: _along("axis") for name in _names("cumsum cumprod cummax cummin cumlogsumexp split")
}
RULES |= {
    name: acting(_window_axes)
    for name in _names(
        """
reduce_window reduce_window_sum reduce_window_max reduce_window_min
"""
    )
}
RULES |= {
    "broadcast_in_dim": _broadcast,
    "concatenate": concatenate,
    "conv_general_dilated": _convolution,
    "dim_as_value": _dim_as_value,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "fft": _fft,
    "gather": gather,
    "iota": _iota,
    "lu_pivots_to_permutation": _last(1),
    "optimization_barrier": _barrier,
    "pad": acting(_changed_axes),
    "random_bits": _random_keys,
    "random_split": _random_keys,
    "reduce": _reduced("dimensions"),
    "reshape": _reshape,
    "rev": _along("dimensions"),
    "slice": acting(_slice_axes),
    "sort": _along("dimension"),
    "stack": _stack,
    "tile": acting(_tiled_axes),
    "squeeze": _reduced("dimensions"),
    "top_k": _last(1),
    "transpose": _transpose,
    "add": or_index(times_one),
    "mul": or_index(times_one),
    "lt": or_index(below_zero),
    "convert_element_type": or_index(converted),
    "select_n": select,
}
RULES |= dict.fromkeys(
    _names(
        """
scatter scatter_add scatter_mul scatter_min scatter_max scatter-add scatter-mul scatter-min
scatter-max scatter_sub scatter-sub
"""
    ),
    scatter,
)
