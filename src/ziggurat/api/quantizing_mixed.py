"""A mixed-precision recipe for a model, found by what its formats cost on text."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ziggurat.core.errors import ConfigError
from ziggurat.core.pytrees import map_named, named_leaves
from ziggurat.kernels.linear import dense
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.models.quantized import summed_axes
from ziggurat.quantize import Recipe, evaluation
from ziggurat.quantize.mixed_precision import (
    FLOAT,
    MixedPrecision,
    Option,
    check_formats,
    recipe_of,
    rule_of,
    search,
)
from ziggurat.quantize.recipe import module_of
from ziggurat.quantize.rounding import METHODS, Rounding
from ziggurat.quantize.weights import check_tiles, one_by_one

Made = Callable[[Recipe], Any]
"""Gives the parameters that a recipe makes."""
Told = Callable[[int, int], None]
Progress = Callable[[str], contextlib.AbstractContextManager[Told]]
"""Opens a line of progress by its name; it takes how much is done, and of how much."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Largest cost of a recipe that is searched for, and the formats that it may use."""

    within: float
    """Largest rise of perplexity, as a share: 0.02 is 2 %."""
    formats: Sequence[str]
    """Names of recipes whose projections' formats are tried."""

    def __post_init__(self):
        if not 0 < self.within < 1:
            raise ConfigError(
                "--within-perplexity",
                found=f"{self.within:g}",
                expected="a share between 0 and 1, such as 0.02 or 2%",
            )
        check_formats(self.formats)


def find_recipe(
    loaded: Pretrained,
    wide: Any,
    budget: Budget,
    rounding: Rounding,
    rows: Int[np.ndarray, "b t"],
    make: Made,
    shown: Progress,
) -> MixedPrecision:
    """Find the smallest recipe that holds a budget on rows of text.

    Args:
        loaded: the model.
        wide: its parameters in float32.
        budget: the largest rise, and the formats.
        rounding: method of the final weights. Matrices alone are rounded to nearest, whatever the
            method; recipes that are measured whole are made by it.
        rows: token ids, each row's last a target only.
        make: parameters by a recipe, for a method that needs text.
        shown: shows how far it is, with matrices alone and with whole recipes.

    Raises:
        ConfigError: no recipe holds the budget.
    """
    loss = evaluation.mean_loss(loaded.model.logits, rows)
    weights = _NearestWeights(loaded, wide, rounding)
    with shown("measuring matrices") as told:
        options = _options(weights, loaded.params, budget.formats, loss, told)
    start, calibrated = loss(loaded.params), METHODS[rounding.method].calibrated

    def measure(choice: Mapping[str, str]) -> float:
        made = make(recipe_of(choice)) if calibrated else weights.placed(choice)
        return loss(made) - start

    with shown("measuring recipes") as told:
        return search(options, measure, budget.within, told)


class _NearestWeights:
    """Matrices of a model rounded to nearest, each in each format once."""

    def __init__(self, loaded: Pretrained, wide: Any, rounding: Rounding):
        method = METHODS[rounding.method]
        self._search = method.search or method.calibrated
        self._before, self.axes = loaded.params, summed_axes(loaded.model)
        self.wide, self._leaves = wide, named_leaves(wide)
        self._made: dict[tuple[str, str], Any] = {}

    def get(self, name: str, format: str) -> Any:
        """A matrix in a format; ``None`` where the format's tiles do not divide its inputs."""
        if (name, format) not in self._made:
            rule, axis, leaf = rule_of(name, format), self.axes[name], self._leaves[name]
            try:
                check_tiles(name, leaf.shape, rule, axis)
            except ConfigError:
                self._made[name, format] = None
            else:
                self._made[name, format], _ = one_by_one(leaf, rule, axis, search=self._search)
        return self._made[name, format]

    def placed(self, choice: Mapping[str, str]) -> Any:
        """The model's parameters with some matrices in their formats."""

        def one(name: str, leaf: Any) -> Any:
            format = choice.get(name, FLOAT)
            return leaf if format == FLOAT else self.get(name, format)

        return map_named(one, self._before)


def _replaced(params: Any, name: str, value: Any) -> Any:
    """Parameters with one leaf replaced."""
    return map_named(lambda other, leaf: value if other == name else leaf, params)


def _options(
    weights: _NearestWeights,
    before: Any,
    formats: Sequence[str],
    loss: Callable[[Any], float],
    told: Told,
) -> dict[str, list[Option]]:
    """Bytes and rise of each matrix alone, in each format that fits it.

    Matrices are measured as the floats that they stand for, so that one compiled program does.
    """
    sizes = {name: leaf.nbytes for name, leaf in named_leaves(before).items()}
    found: dict[str, list[Option]] = {}
    start, total = loss(weights.wide), len(weights.axes) * len(formats)
    for number, name in enumerate(weights.axes):
        found[name] = [Option(FLOAT, sizes[name], 0.0)]
        for count, format in enumerate(formats):
            made = weights.get(name, format)
            if made is not None and made.nbytes < sizes[name]:
                alone = _replaced(weights.wide, name, dense(made))
                found[name].append(Option(format, made.nbytes, loss(alone) - start))
            told(number * len(formats) + count + 1, total)
    if all(len(each) == 1 for each in found.values()):
        raise ConfigError(
            "--formats",
            found=", ".join(formats),
            expected="one that makes a matrix smaller, such as int8",
            fix=f"inputs of {module_of(next(iter(found)))} and all others do not fit their tiles",
        )
    return found
