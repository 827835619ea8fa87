"""Recipes: what is accepted, and what each mistake is told."""

import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.quantize import NAMED, Recipe, Rule, resolve
from ziggurat.quantize.recipe import assign

NAMES = ["blocks.attention.query.kernel", "blocks.mlp.up.kernel", "embedding.table"]


def parse(text):
    return config.parse(Recipe, f"rules = [{{ {text} }}]").value


@pytest.mark.parametrize("name", NAMED)
def test_named_recipes_cover_every_family(name):
    """Untied heads, experts and a second stack too; tables are 8 bits at least."""
    names = [*NAMES, "unembedding", "blocks_1.mlp.experts.up.kernel"]
    found = assign(NAMED[name], names)
    assert found.keys() == set(names)
    assert found["embedding.table"].weight in ("int8", "fp8_e4m3")
    assert assign(NAMED[name], NAMES).keys() == set(NAMES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('module_pth = "x"', "did you mean module_path"),
        ('module_path = "("', "a regular expression"),
        ('module_path = "x", weight = "int3"', "weight: found 'int3'"),
        ('module_path = "x", weight = "int4", tile_size = 1', "a number >= 2"),
        ('module_path = "x", weight = "int4", clip = 1.5', r"a share in \(0, 1\]"),
        ('module_path = "x", tile_size = 32', "as other keys of this rule are set"),
        (
            'module_path = "x", weight = "nf4", activation = "int8"',
            "int4 or int8 weights with it, or nf4 without activation",
        ),
        (
            'module_path = "x", weight = "int8", activation = "fp8_e4m3"',
            "for fp8_e4m3 activations: fp8_e4m3",
        ),
        ('module_path = "x", weight = "nf4", symmetric = false', "true, or an int4 or int8 weight"),
        (
            'module_path = "x", weight = "int8", activation = "int8", symmetric = false',
            "true where activations are quantised",
        ),
    ],
)
def test_mistakes_are_told(text, says):
    with pytest.raises(ConfigError, match=says):
        parse(text)


def test_the_first_rule_that_matches_the_whole_path_decides():
    recipe = Recipe(
        rules=(
            Rule(module_path="blocks/mlp/.*"),
            Rule(module_path="blocks/.*", weight="int4", tile_size=32),
        )
    )
    found = assign(recipe, NAMES)
    assert {name: rule.weight for name, rule in found.items()} == {NAMES[0]: "int4"}


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["blocks/.*", "blocks/attention/query2"], "did you mean blocks/attention/query"),
        (["blocks/.*", "blocks/mlp/.*"], "which an earlier rule decides; .*narrower rule first"),
        (["blocks"], "no such module"),  # the whole path has to match, as in Qwix
    ],
)
def test_a_rule_that_decides_nothing_is_an_error(paths, says):
    recipe = Recipe(rules=tuple(Rule(module_path=path, weight="int8") for path in paths))
    with pytest.raises(ConfigError, match=says):
        assign(recipe, NAMES)


def test_a_recipe_must_quantise_something():
    with pytest.raises(ConfigError, match="no rule with a weight type"):
        assign(Recipe(rules=(Rule(module_path=".*"),)), NAMES)


def test_resolve(tmp_path):
    assert resolve("nf4") is NAMED["nf4"]
    file = tmp_path / "mine.toml"
    file.write_text('[[rules]]\nmodule_path = "blocks/.*"\nweight = "int8"\n')
    assert resolve(str(file)).rules == (Rule(module_path="blocks/.*", weight="int8"),)
    with pytest.raises(ConfigError, match=r"found 'int44'.*did you mean int4"):
        resolve("int44")
