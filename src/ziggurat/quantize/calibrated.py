"""Quantising a model layer by layer on real text: each layer is rounded for the inputs that it gets
behind the layers that are rounded already.

A mixture's experts are rounded for the tokens routed to each. An expert with fewer tokens than
inputs has no unique best rounding; damping keeps such weights near the nearest values, and one
without tokens is rounded to nearest.
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.core.errors import ConfigError
from ziggurat.core.pytrees import map_named, named_leaves
from ziggurat.kernels.linear import QuantizedWeight, is_quantized
from ziggurat.quantize.folding import fold_layer
from ziggurat.quantize.inputs import InputMoments, Layers
from ziggurat.quantize.recipe import Recipe, Rule
from ziggurat.quantize.rounding import METHODS, Rounding, function_of
from ziggurat.quantize.weights import (
    Progress,
    Quantized,
    WeightError,
    checked_rules,
    one_by_one,
    relative_error,
)

_log = logging.getLogger(__name__)


def quantize_calibrated(
    params: Mapping[str, Any],
    recipe: Recipe,
    summed_axes: Mapping[str, int],
    rounding: Rounding,
    layers: Layers,
    places: list[tuple[str, int]],
    progress: Progress = lambda name, done, total: None,
) -> Quantized:
    """Quantise the weights that a recipe's rules choose, layer by layer.

    Matrices outside of layers (tables of the vocabulary), and such as multiply in no matmul, are
    rounded to nearest with searched scales.

    Args:
        params: nested dict of arrays, float32.
        recipe: the rules.
        summed_axes: weights that may be quantised, as for
            :func:`ziggurat.quantize.weights.quantize`.
        rounding: method and its settings.
        layers: the model with the calibration text in it.
        places: of each layer, the name of its stack and its index there.
        progress: told of every matrix.

    Raises:
        ConfigError: as :func:`ziggurat.quantize.weights.quantize`; the damping is too small for
            float32; or the method does not round to a type.
    """
    leaves = named_leaves(params, is_leaf=is_quantized)
    rules = checked_rules(leaves, recipe, summed_axes)
    inside = {name: name.partition(".")[0] for name in rules}
    stacks = {stack for stack, _ in places}
    fold = METHODS[rounding.method].fold is not None
    total = sum(leaves[name].shape[0] if inside[name] in stacks else 1 for name in rules)
    made: dict[str, list[QuantizedWeight]] = {name: [] for name in rules}
    errors: dict[str, list[float]] = {name: [] for name in rules}
    few: list[str] = []
    changed: dict[str, dict[int, Any]] = {}
    done = 0
    for layer, (stack, index) in enumerate(places):
        names = [name for name in rules if inside[name] == stack]
        moments = layers.moments(layer, names) if names else {}
        own = {n: leaf[index] for n, leaf in leaves.items() if n.partition(".")[0] == stack}
        folded: dict[str, Any] = {}
        if fold:
            folds = layers.folds(layer)
            folded, moments = fold_layer(own, moments, rules, rounding, folds)
        for name in folded.keys() - rules.keys():
            changed.setdefault(name, {})[index] = folded[name]
        for name in names:
            progress(name, done, total)
            done += 1
            matrix = folded.get(name, own[name])
            found = moments.get(name)
            if found is None:
                weight, off = one_by_one(matrix, rules[name], summed_axes[name], search=True)
            else:
                _note_few(few, name, index, found.tokens, matrix.shape[-2])
                weight, off = _rounded(name, matrix, found, rules[name], rounding)
            made[name].append(weight)
            errors[name] += off
        rounded = {name: jax.tree.map(jnp.asarray, made[name][-1]) for name in names}
        layers.advance(layer, folded | rounded)
    for name in rules:
        if inside[name] not in stacks:
            progress(name, done, total)
            done += 1
            weight, errors[name] = one_by_one(
                leaves[name], rules[name], summed_axes[name], search=True
            )
            made[name] = [jax.tree.map(lambda part: part[None], weight)]
    if few:
        _log.warning("%d matrices saw fewer tokens than they have inputs: %s", len(few), few[0])
    return _assembled(_with_norms(params, changed), rules, made, errors, stacks)


def _rounded(
    name: str, matrix: Any, found: InputMoments, rule: Rule, rounding: Rounding
) -> tuple[QuantizedWeight, list[float]]:
    """A matrix, or a stack of experts, and the relative error of each."""
    stacked = matrix.ndim > 2
    parts, errors = [], []
    work = function_of(METHODS[rounding.method].round or "")
    for number, one in enumerate(matrix if stacked else matrix[None]):
        inputs = found[number] if stacked else found
        weight = work(jnp.asarray(one, jnp.float32), inputs, rule, rounding)
        if not bool(jnp.isfinite(weight.scale).all()):
            raise ConfigError(
                f"quantize {name}",
                found="a Hessian that is not positive definite in float32",
                expected=f"more damping than {rounding.damping}",
                fix="raise --damping, or calibrate on more text",
            )
        errors.append(relative_error(one, weight))
        parts.append(jax.device_get(weight))
    if not stacked:
        return parts[0], errors
    return jax.tree.map(lambda *part: np.stack(part), *parts), errors


def _note_few(few: list[str], name: str, index: int, tokens: np.ndarray, inputs: int) -> None:
    for expert, count in enumerate(tokens.reshape(-1)):
        if count < inputs:
            which = f" expert {expert}" if tokens.ndim else ""
            few.append(f"{name} layer {index}{which} ({count} tokens, {inputs} inputs)")


def _with_norms(
    params: Mapping[str, Any], changed: Mapping[str, Mapping[int, Any]]
) -> dict[str, Any]:
    """Parameters with the vectors into which factors were folded."""

    def one(name: str, leaf: Any) -> Any:
        if name not in changed:
            return leaf
        numbers = sorted(changed[name])
        values = np.stack([np.asarray(changed[name][number]) for number in numbers])
        return jnp.asarray(leaf).at[np.asarray(numbers)].set(values)

    return map_named(one, params)


def _assembled(
    params: Mapping[str, Any],
    rules: Mapping[str, Rule],
    made: Mapping[str, list[QuantizedWeight]],
    errors: Mapping[str, list[float]],
    stacks: set[str],
) -> Quantized:
    """The tree of parameters with the weights in their places."""
    whole = {}
    for name, weights in made.items():
        if name.partition(".")[0] in stacks:
            whole[name] = jax.tree.map(lambda *part: jnp.asarray(np.stack(part)), *weights)
        else:
            whole[name] = jax.tree.map(lambda part: jnp.asarray(part[0]), weights[0])
    found = [
        WeightError(name, number if len(errors[name]) > 1 else None, error)
        for name in rules
        for number, error in enumerate(errors[name])
    ]
    tree = map_named(lambda name, leaf: whole.get(name, leaf), params)
    return Quantized(tree, {name: weight.format for name, weight in whole.items()}, found)
