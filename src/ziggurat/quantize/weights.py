"""Quantising the weights of a parameter tree by a recipe, with Qwix's functions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ziggurat.core.errors import ConfigError
from ziggurat.core.pytrees import map_named, named_leaves
from ziggurat.kernels.linear import QuantizedWeight, WeightFormat, is_quantized
from ziggurat.kernels.linear.rounded import quantize_array
from ziggurat.kernels.linear.weight_types import TYPES
from ziggurat.quantize.grid import Grid
from ziggurat.quantize.recipe import Recipe, Rule, assign, module_of

Progress = Callable[[str, int, int], None]
"""Called with a weight's name, and how many of how many weights are done."""


@dataclasses.dataclass(frozen=True)
class WeightError:
    """Quantisation error of one matrix of one layer."""

    name: str
    layer: int | None
    """Index along the stacked axes; ``None`` where nothing is stacked."""
    relative_error: float
    r"""Frobenius norm :math:`\|W - \hat W\| / \|W\|`."""


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Parameters after a recipe, and what it did to them."""

    params: dict[str, Any]
    formats: dict[str, WeightFormat]
    errors: list[WeightError]


def format_of(rule: Rule) -> WeightFormat:
    """The format that a rule with a weight type asks for."""
    assert rule.weight is not None
    tile = rule.tile_size
    activation_tile = None if rule.activation is None else tile
    return WeightFormat(rule.weight, rule.activation, tile, rule.symmetric, activation_tile)


def quantize(
    params: Mapping[str, Any],
    recipe: Recipe,
    summed_axes: Mapping[str, int],
    progress: Progress = lambda name, done, total: None,
    *,
    search: bool = False,
) -> Quantized:
    """Quantise the weights that a recipe's rules choose; all else stays as it is.

    Matrices are taken one layer at a time, so that little more than the result is needed.

    Args:
        params: nested dict of arrays.
        recipe: the rules.
        summed_axes: weights that may be quantised, with the axis over which their matmuls sum, as
            ``ziggurat.models.quantized.summed_axes`` gives them.
        progress: told of every weight.
        search: search for the scales of the least squared error, instead of taking them from the
            largest magnitudes.

    Raises:
        ConfigError: a rule decides nothing, a tile does not divide, or a weight is quantised
            already.

    >>> from ziggurat.quantize.recipe import NAMED
    >>> blocks = {"up": {"kernel": jnp.ones((2, 8, 4))}}
    >>> tree = {"blocks": blocks, "embedding": {"table": jnp.ones((3, 8))}}
    >>> axes = {"blocks.up.kernel": -2, "embedding.table": -1}
    >>> done = quantize(tree, NAMED["int8"], axes)
    >>> done.params["blocks"]["up"]["kernel"].scale.shape, len(done.errors)
    ((2, 1, 4), 3)
    """
    leaves = named_leaves(params, is_leaf=is_quantized)
    rules = checked_rules(leaves, recipe, summed_axes)
    made: dict[str, QuantizedWeight] = {}
    errors: list[WeightError] = []
    for number, (name, rule) in enumerate(rules.items()):
        progress(name, number, len(rules))
        made[name], found = one_by_one(leaves[name], rule, summed_axes[name], search=search)
        stacked = leaves[name].ndim > 2
        errors += [WeightError(name, i if stacked else None, e) for i, e in enumerate(found)]
    tree = map_named(lambda name, leaf: made.get(name, leaf), params)
    return Quantized(tree, {name: weight.format for name, weight in made.items()}, errors)


def checked_rules(
    leaves: Mapping[str, Any], recipe: Recipe, summed_axes: Mapping[str, int]
) -> dict[str, Rule]:
    """Rules of the weights that are to be quantised.

    Raises:
        ConfigError: as :func:`quantize`.
    """
    rules = assign(recipe, summed_axes)
    for name, rule in rules.items():
        if is_quantized(leaves[name]):
            raise ConfigError(
                f"quantize {name}",
                found=f"{leaves[name].format.weight} already",
                expected="float weights",
                fix="quantise the model from which this one was made",
            )
        check_tiles(name, leaves[name].shape, rule, summed_axes[name])
    return rules


def one_by_one(
    weight: Array, rule: Rule, axis: int, *, search: bool
) -> tuple[QuantizedWeight, list[float]]:
    """Round a stack of matrices to nearest, one at a time.

    Args:
        weight: ``[..., d, f]``, or a table ``[v, d]``.
        rule: the rule that chose it.
        axis: over which matmuls sum.
        search: search for the scales of the least squared error.

    Returns:
        The stack, and the relative error of each matrix.
    """
    matrices = weight.reshape(-1, *weight.shape[-2:])
    work = _compiled(format_of(rule), axis, rule.clip, search)
    parts, errors = zip(*(jax.device_get(work(matrix)) for matrix in matrices))
    lead = weight.shape[:-2]
    whole = jax.tree.map(
        lambda *one: jnp.asarray(np.stack(one).reshape(*lead, *one[0].shape)), *parts
    )
    return whole, [float(error) for error in errors]


def relative_error(matrix: Array, made: QuantizedWeight) -> float:
    """Frobenius norm of a quantised matrix's error relative to the matrix."""
    return float(_relative_error(matrix, made))


@jax.jit
def _relative_error(matrix: Array, made: QuantizedWeight) -> Array:
    wide = matrix.astype(jnp.float32)
    off = jnp.linalg.norm(wide - made.dequantized().astype(jnp.float32))
    return off / jnp.maximum(jnp.linalg.norm(wide), jnp.finfo(jnp.float32).tiny)


@functools.cache
def _compiled(format: WeightFormat, axis: int, clip: float, search: bool) -> Callable[..., Any]:
    @jax.jit
    def work(matrix: Array) -> tuple[QuantizedWeight, Array]:
        if search:
            rows = matrix.astype(jnp.float32)
            rows = rows.T if axis == -1 else rows
            grid = Grid.fit(rows, format, clip)
            made = grid.quantized(grid.encode(rows), axis)
        else:
            made = quantize_array(matrix, format, axis, clip)
        return made, _relative_error(matrix, made)

    return work


def check_tiles(name: str, shape: tuple[int, ...], rule: Rule, axis: int) -> None:
    """Refuse a rule whose tiles or packed bytes do not divide a weight's inputs.

    Raises:
        ConfigError: with the nearest tile that does.
    """
    inputs, tile = shape[axis], rule.tile_size
    where = f"recipe rule {rule.module_path!r}: {module_of(name)} of {inputs} inputs"
    if tile is not None and inputs % tile:
        divisors = [n for n in range(2, inputs + 1) if inputs % n == 0]
        nearest = min(divisors, key=lambda n: (abs(n - tile), n))
        raise ConfigError(
            where,
            found=f"tile_size {tile}, which does not divide {inputs}",
            expected="a divisor",
            fix=f"use tile_size = {nearest}",
        )
    each = 1 if rule.weight is None else TYPES[rule.weight].per_byte
    if inputs % each:
        number = "an even number" if each == 2 else f"a multiple of {each}"
        raise ConfigError(
            where, found=f"{rule.weight}", expected=f"{number} of inputs", fix="use int8"
        )
