"""Every recipe loads, is short, and its model can be built."""

import dataclasses
from pathlib import Path

import pytest

from ziggurat.core import config
from ziggurat.models import DiffusionModel, DitConfig, LanguageModel
from ziggurat.train.config import PretrainedModel, RunConfig
from ziggurat.train.registries import OBJECTIVES

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe(path):
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 30
    run = config.load(RunConfig, path).value
    assert run.name == path.stem
    if isinstance(run.model, DitConfig):
        assert DiffusionModel.build(run.model).parameter_count > 0
    elif not isinstance(run.model, PretrainedModel):
        assert LanguageModel.build(run.model).parameter_count > 0


def test_the_readme_shows_the_recipe_as_it_is():
    assert (ROOT / "recipes/tiny-python.toml").read_text().strip() in (
        ROOT / "README.md"
    ).read_text()


def test_a_run_has_fewer_than_250_keys():
    """The design's bound on how much there is to know (MaxText has 696 keys), for every objective
    with its kind of data and the largest variant of every other choice."""

    def keys(cls: type) -> int:
        return sum(map(largest, dataclasses.fields(cls)))

    def largest(field: dataclasses.Field) -> int:
        return 1 + max(map(keys, config.variants(field.type)), default=0)

    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    common = sum(largest(fields[name]) for name in fields.keys() - {"data", "objective"})
    data = {config.tag(node): keys(node) for node in config.variants(fields["data"].type)}
    of_kind = {kind: "images" for kind in OBJECTIVES if OBJECTIVES[kind].images} | {
        "grpo": "problems"
    }
    for node in config.variants(fields["objective"].type):
        count = common + 2 + keys(node) + data[of_kind.get(config.tag(node), "text")]
        assert 50 < count < 250, (config.tag(node), count)
