r"""Mixed-precision recipes by a budget of perplexity: the smallest that holds it. No JAX here.

Each matrix (all layers of its stack together) may take one of some formats or stay a float. With
the rise of the loss :math:`r_{if}` that matrix :math:`i` causes alone in format :math:`f`, and its
bytes :math:`b_{if}`, a choice solves the integer program

.. math:: \min \sum_i b_{i f_i} \quad \text{with} \quad \sum_i r_{i f_i} \le \beta

by dynamic programming over the budget. Rises do not add up exactly, so the choice is measured
whole, and bisection over :math:`\beta` finds the smallest whose measured rise holds the true
budget; then each matrix is tried in its smaller formats once more. Uniform recipes are measured
too. What is returned was measured whole and holds the budget.

Paper: Yao et al. 2021 (HAWQ-V3), https://arxiv.org/abs/2011.10680, section 3.4, for the integer
program; sensitivities there come from the Hessian, here they are measured.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ziggurat.core.errors import ConfigError
from ziggurat.quantize.recipe import NAMED, Recipe, Rule, module_of

FLOAT = "float"
"""A matrix that is left as it is."""
FORMATS = ("int8", "int4")
"""Formats that are tried by default."""
_CELLS = 1000
"""Parts of a limit to which rises are rounded up."""
_ROUNDS = 8
"""Steps of bisection."""
Choice = Mapping[str, str]
"""Format of each matrix by its name; those that are missing stay floats."""
Measure = Callable[[Choice], float]
"""Rise of the mean loss (nats) of a model with these formats."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One format that a matrix may take."""

    format: str
    """Name of the format, or ``float``."""
    nbytes: int
    """Bytes of the matrix in it, scales and zero points included."""
    rise: float
    """Rise of the mean loss (nats) with this matrix alone in it."""


@dataclasses.dataclass(frozen=True)
class MeasuredRecipe:
    """A choice that was measured whole."""

    choice: Choice
    nbytes: int
    """Bytes of the matrices."""
    rise: float
    """Rise of the mean loss, nats."""

    @property
    def cost(self) -> float:
        """Rise of the perplexity, as a share."""
        return math.expm1(self.rise)


@dataclasses.dataclass(frozen=True)
class MixedPrecision:
    """Result of a search: the recipe found, and the measurements that led to it."""

    within: float
    """Budget: the largest rise of perplexity, as a share."""
    options: Mapping[str, Sequence[Option]]
    """Formats of each matrix, measured alone."""
    uniform: Mapping[str, MeasuredRecipe]
    """Every matrix that can in one format, for each format."""
    best: MeasuredRecipe
    """The smallest of all choices measured whole that hold the budget."""

    @property
    def recipe(self) -> Recipe:
        """The recipe found."""
        return recipe_of(self.best.choice)


def rule_of(name: str, format: str) -> Rule:
    """The rule that gives one matrix the format of a named recipe's projections.

    >>> rule = rule_of("blocks.mlp.up.kernel", "int4")
    >>> rule.module_path, rule.weight, rule.tile_size
    ('blocks/mlp/up', 'int4', 32)
    """
    first = NAMED[format].rules[0]
    return dataclasses.replace(first, module_path=re.escape(module_of(name)))


def recipe_of(choice: Choice) -> Recipe:
    """Rules for a choice in which something is quantised."""
    chosen = {name: format for name, format in choice.items() if format != FLOAT}
    return Recipe(rules=tuple(rule_of(name, format) for name, format in chosen.items()))


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that no named recipe with float activations has.

    Raises:
        ConfigError: with those that there are.
    """
    known = [name for name, recipe in NAMED.items() if recipe.rules[0].activation is None]
    wrong = [name for name in formats if name not in known]
    if wrong or not formats:
        found = repr(wrong[0]) if wrong else "none"
        expected = f"formats among {', '.join(known)}, whose activations stay floats"
        raise ConfigError("formats", found=found, expected=expected)


def search(
    options: Mapping[str, Sequence[Option]],
    measure: Measure,
    within: float,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> MixedPrecision:
    """Find the smallest choice whose perplexity rises by at most a share.

    Args:
        options: formats of each matrix, ``float`` among them.
        measure: gives the rise of a choice that quantises something.
        within: largest rise of perplexity; 0.02 is 2 %.
        told: how many choices are measured, and of about how many.

    Raises:
        ConfigError: no choice holds the budget; the nearest one is named.

    >>> sizes = {"float": (64, 0.0), "int8": (16, 0.001), "int4": (8, 0.05)}
    >>> both = [Option(format, *found) for format, found in sizes.items()]
    >>> cost = lambda choice: sum(sizes[format][1] for format in choice.values())
    >>> search({"a": both, "b": both}, cost, 0.06).best.choice
    {'a': 'int4', 'b': 'int8'}
    """
    run = _Search(options, measure, math.log1p(within), told)
    found = dict.fromkeys(o.format for each in options.values() for o in each)
    uniform = {format: _uniform(options, format) for format in found if format != FLOAT}
    for choice in uniform.values():
        run.try_(choice)
    run.bisect(math.log1p(within))
    run.refine(run.best.choice if run.best else dict.fromkeys(options, FLOAT))
    if run.best is None:
        raise _refused(list(run.trials.values()), within)
    measured = {format: run.trials[run.key(choice)] for format, choice in uniform.items()}
    return MixedPrecision(within, options, measured, run.best)


class _Search:
    """Trials so far, and the best that holds the budget."""

    def __init__(
        self,
        options: Mapping[str, Sequence[Option]],
        measure: Measure,
        limit: float,
        told: Callable[[int, int], None],
    ):
        self._measure, self._limit, self._told = measure, limit, told
        self._options = options
        self._sizes = {(n, o.format): o.nbytes for n, each in options.items() for o in each}
        self.trials: dict[tuple[str, ...], MeasuredRecipe] = {}
        self.best: MeasuredRecipe | None = None
        count = sum(len(each) - 1 for each in options.values())
        self._expected = count + _ROUNDS

    def bytes_of(self, choice: Choice) -> int:
        return sum(self._sizes[name, choice[name]] for name in self._options)

    def try_(self, choice: Choice) -> bool:
        """Measure a choice once; whether it holds the budget."""
        key = self.key(choice)
        if key not in self.trials:
            trial = MeasuredRecipe(dict(choice), self.bytes_of(choice), self._measure(choice))
            self.trials[key] = trial
            smaller = self.best is None or trial.nbytes < self.best.nbytes
            if trial.rise <= self._limit and smaller:
                self.best = trial
            self._told(len(self.trials), max(self._expected, len(self.trials)))
        return self.trials[key].rise <= self._limit

    def key(self, choice: Choice) -> tuple[str, ...]:
        return tuple(choice[name] for name in self._options)

    def bisect(self, limit: float) -> None:
        """Measure choices whose rises alone add up to a nominal limit, more where they hold the
        true one, less where they do not."""
        low, high = 0.0, math.inf
        smallest = {
            n: min(each, key=lambda o: o.nbytes).format for n, each in self._options.items()
        }
        for _ in range(_ROUNDS):
            choice = cheapest(self._options, limit)
            if set(choice.values()) == {FLOAT} or self.try_(choice):
                low, limit = limit, 2 * limit if high == math.inf else (limit + high) / 2
                if choice == smallest:
                    return
            else:
                high, limit = limit, (low + limit) / 2

    def refine(self, choice: Choice) -> None:
        """Try each matrix in its smaller formats, those that save most first."""
        now = dict(choice)
        smaller = [
            (self._sizes[name, now[name]] - option.nbytes, name, option.format)
            for name, each in self._options.items()
            for option in each
            if option.nbytes < self._sizes[name, now[name]]
        ]
        for _, name, format in sorted(smaller, key=lambda one: -one[0]):
            changed = now | {name: format}
            if self.bytes_of(changed) < self.bytes_of(now) and self.try_(changed):
                now = changed


def _uniform(options: Mapping[str, Sequence[Option]], format: str) -> dict[str, str]:
    """Every matrix in a format that may take it."""
    can = {name: any(o.format == format for o in each) for name, each in options.items()}
    return {name: format if can[name] else FLOAT for name in options}


def cheapest(options: Mapping[str, Sequence[Option]], limit: float) -> dict[str, str]:
    """The choice of the fewest bytes whose rises add up to at most a limit.

    Rises are rounded up to thousandths of the limit; those below zero count as none.

    >>> one = [Option("float", 64, 0.0), Option("int8", 16, 0.01), Option("int4", 8, 0.05)]
    >>> cheapest({"a": one, "b": one}, 0.07), cheapest({"a": one}, 0.005)
    ({'a': 'int4', 'b': 'int8'}, {'a': 'float'})
    """
    least = np.zeros(_CELLS + 1)
    picks = []
    for each in options.values():
        units = [math.ceil(max(option.rise, 0.0) / limit * _CELLS - 1e-9) for option in each]
        totals = np.full((len(each), _CELLS + 1), np.inf)
        for total, unit, option in zip(totals, units, each):
            if unit <= _CELLS:
                total[unit:] = least[: _CELLS + 1 - unit] + option.nbytes
        picks.append((totals.argmin(0), units))
        least = totals.min(0)
    found, cell = {}, _CELLS
    for (name, each), (pick, units) in reversed(list(zip(options.items(), picks))):
        number = pick[cell]
        found[name] = each[number].format
        cell -= units[number]
    return {name: found[name] for name in options}


def _refused(trials: Sequence[MeasuredRecipe], within: float) -> ConfigError:
    nearest = min(trials, key=lambda trial: (trial.rise, trial.nbytes))
    chosen = [
        f"{format} {module_of(name)}" for name, format in nearest.choice.items() if format != FLOAT
    ]
    return ConfigError(
        "--within-perplexity",
        found=f"{nearest.cost:+.4%} at best, with {', '.join(chosen)}",
        expected=f"at most {within:+.4%}",
        fix="allow more, measure on more text (--tokens), or use --method mse or gptq",
    )
