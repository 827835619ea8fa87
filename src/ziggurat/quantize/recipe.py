"""Recipes: which weights get which type, as rules over module paths. No JAX here.

Rules mean what Qwix's ``QuantizationRule`` means: ``module_path`` is a regular expression that must
match the whole path (``blocks/attention/query``), and the first rule that matches a module decides.

>>> recipe = config.parse(Recipe, '''
... rules = [
...   { module_path = "blocks/mlp/.*", weight = "int4", tile_size = 32 },
...   { module_path = "blocks/.*", weight = "int8" },
... ]''').value
>>> names = ["blocks.mlp.up.kernel", "blocks.attention.out.kernel", "embedding.table"]
>>> found = assign(recipe, names)
>>> {name: rule.weight for name, rule in found.items()}
{'blocks.mlp.up.kernel': 'int4', 'blocks.attention.out.kernel': 'int8'}
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, did_you_mean
from ziggurat.kernels.weight_types import WEIGHT_TYPES, ValueType


def _types(allows: Callable[[ValueType], bool] = lambda kind: True) -> list[str]:
    """Weight types that recipes may use, and that allow something. Listing them loads plugins, so
    only errors ask for it."""
    kinds = {name: WEIGHT_TYPES[name] for name in WEIGHT_TYPES}
    return [name for name, kind in kinds.items() if kind.recipe and allows(kind)]


@config.node
class Rule:
    """Quantisation of the weights of matching modules."""

    module_path: str
    """Regular expression for the whole path of a module, such as ``blocks/(attention|mlp)/.*``."""
    weight: str | None = None
    """Type of the weights: int8, int4, nf4, fp8_e4m3, fp8_e5m2, or one that a plugin registers;
    without it they stay as they are."""
    activation: Literal["int8", "fp8_e4m3"] | None = None
    """Type to which activations are quantised as they come, a scale per token; default: floats."""
    tile_size: int | None = None
    """Inputs that share a scale; default: all inputs of an output channel."""
    symmetric: bool = True
    """Whether zero is the integer 0; else weights have zero points."""
    clip: float = 1.0
    """Share of the largest magnitude that is kept; what is beyond is clipped."""

    def __post_init__(self):
        try:
            re.compile(self.module_path)
        except re.error as error:
            config.require(
                False, "module_path", self.module_path, f"a regular expression ({error})"
            )
        if self.weight is not None:
            known = self.weight in WEIGHT_TYPES and WEIGHT_TYPES[self.weight].recipe
            listed = "" if known else f"one of {', '.join(_types())}"
            config.require(known, "weight", self.weight, listed)
        size = self.tile_size
        config.require(size is None or size >= 2, "tile_size", size, "a number >= 2")
        config.require(0 < self.clip <= 1, "clip", self.clip, "a share in (0, 1]")
        if self.weight is None:
            default = type(self)(module_path=self.module_path, weight="int8")
            given = dataclasses.replace(self, weight="int8") != default
            config.require(not given, "weight", None, "a type, as other keys of this rule are set")
        self._check_combination()

    def _check_combination(self):
        weight, activation = self.weight, self.activation
        kind = None
        if weight is not None and weight in WEIGHT_TYPES:
            kind = WEIGHT_TYPES[weight]
        if activation is not None and (kind is None or activation not in kind.activations):
            nearest = " or ".join(_types(lambda kind: activation in kind.activations))
            if kind is not None and not kind.activations:
                nearest += f" weights with it, or {weight} without activation"
            config.require(False, "weight", weight, f"for {activation} activations: {nearest}")
        if not self.symmetric:
            if kind is None or not kind.zero_point:
                integers = " or ".join(_types(lambda kind: kind.zero_point))
                config.require(False, "symmetric", False, f"true, or an {integers} weight")
            floats = "true where activations are quantised"
            config.require(activation is None, "symmetric", False, floats)


@config.node
class Recipe:
    """Quantisation rules in order of precedence."""

    rules: tuple[Rule, ...]
    """The first that matches a module decides."""

    def __post_init__(self):
        config.require(bool(self.rules), "rules", [], "at least one rule")


_BLOCKS, _TABLES = r"blocks(_\d+)?/.*", "(un)?embedding"
_INT8_TABLES = Rule(module_path=_TABLES, weight="int8")

NAMED: dict[str, Recipe] = {
    "int8": Recipe(rules=(Rule(module_path=_BLOCKS, weight="int8"), _INT8_TABLES)),
    "w8a8": Recipe(
        rules=(Rule(module_path=_BLOCKS, weight="int8", activation="int8"), _INT8_TABLES)
    ),
    "fp8": Recipe(
        rules=(
            Rule(module_path=_BLOCKS, weight="fp8_e4m3"),
            Rule(module_path=_TABLES, weight="fp8_e4m3"),
        )
    ),
    "int4": Recipe(
        rules=(
            Rule(module_path=_BLOCKS, weight="int4", tile_size=32, symmetric=False),
            _INT8_TABLES,
        )
    ),
    "nf4": Recipe(rules=(Rule(module_path=_BLOCKS, weight="nf4", tile_size=32), _INT8_TABLES)),
}
"""Recipes by name. Tables of the vocabulary are int8, a scale per token id, where projections have
four bits: they are a large part of a small model and of its error."""


def resolve(recipe: str) -> Recipe:
    """A recipe by name or from a TOML file.

    Raises:
        ConfigError: no such name or file, or the file breaks a rule; all such are named.
    """
    if recipe in NAMED:
        return NAMED[recipe]
    if not recipe.endswith(".toml"):
        raise ConfigError(
            "recipe",
            found=repr(recipe),
            expected="one of " + ", ".join(NAMED) + ", or the path of a .toml file",
            fix=did_you_mean(recipe, NAMED),
        )
    return config.load(Recipe, Path(recipe)).value


@config.node
class QuantizedTraining:
    """Weights are rounded in every forward pass, and gradients pass the rounding
    (quantisation-aware training)."""

    recipe: str | None = None
    """int8, fp8, int4 or nf4; or give rules."""
    rules: tuple[Rule, ...] = ()
    """Rules in order of precedence; the first that matches a module decides."""

    def __post_init__(self):
        expected = "one of recipe and rules"
        both = self.recipe is not None and bool(self.rules)
        config.require(not both, "rules", "rules and a recipe", expected)
        given = self.recipe is not None or bool(self.rules)
        config.require(given, "recipe", "nothing", expected)
        if self.recipe is not None:
            floats = {n for n in NAMED if all(r.activation is None for r in NAMED[n].rules)}
            known = "one of " + ", ".join(sorted(floats)) + ", whose activations stay floats"
            config.require(self.recipe in floats, "recipe", self.recipe, known)
        for rule in self.rules:
            config.require(rule.activation is None, "rules", rule.activation, "float activations")

    @property
    def rounded(self) -> Recipe:
        """The rules."""
        return Recipe(rules=self.rules) if self.recipe is None else NAMED[self.recipe]


def module_of(name: str) -> str:
    """The module path of a weight's dotted name.

    >>> module_of("blocks.attention.query.kernel"), module_of("unembedding")
    ('blocks/attention/query', 'unembedding')
    """
    return re.sub(r"\.(kernel|table)$", "", name).replace(".", "/")


def assign(recipe: Recipe, names: Iterable[str]) -> dict[str, Rule]:
    """Match each weight that is to be quantised with its rule.

    Args:
        recipe: the rules.
        names: dotted names of the weights that can be quantised.

    Raises:
        ConfigError: a rule decides nothing, or no weight would be quantised.
    """
    paths = {name: module_of(name) for name in names}
    found: dict[str, Rule] = {}
    used: set[int] = set()
    for name, path in paths.items():
        for number, rule in enumerate(recipe.rules):
            if re.fullmatch(rule.module_path, path):
                used.add(number)
                found[name] = rule
                break
    for number, rule in enumerate(recipe.rules):
        if number not in used:
            raise _unused(number, rule, list(paths.values()))
    chosen = {name: rule for name, rule in found.items() if rule.weight is not None}
    if not chosen:
        raise ConfigError("recipe", found="no rule with a weight type", expected="at least one")
    return chosen


def _unused(number: int, rule: Rule, paths: list[str]) -> ConfigError:
    matched = [path for path in paths if re.fullmatch(rule.module_path, path)]
    return ConfigError(
        f"recipe rules.{number}: module_path {rule.module_path!r}",
        found=f"{matched[0]}, which an earlier rule decides" if matched else "no such module",
        expected="a match among " + ", ".join(dict.fromkeys(paths)),
        fix="put the narrower rule first" if matched else did_you_mean(rule.module_path, paths),
    )
