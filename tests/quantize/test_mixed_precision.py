"""The search for a recipe within a budget of perplexity: on figures, and on a tiny model."""

import contextlib
import itertools
import math

import jax
import numpy as np
import pytest

from ziggurat.core.errors import ConfigError
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.quantized import summed_axes
from ziggurat.quantize import evaluation
from ziggurat.quantize.mixed_precision import Option, recipe_of, search
from ziggurat.quantize.recipe import assign
from ziggurat.quantize.weights import quantize


def tables(seed, matrices=5):
    """Random sizes and rises of three formats for each matrix."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in (f"m{number}" for number in range(matrices)):
        size = int(rng.integers(100, 400))
        eight, four = sorted(rng.uniform(0.0, 0.02, 2).tolist())
        options = [("float", size, 0.0), ("int8", size // 4, eight), ("int4", size // 7, four)]
        found[name] = [Option(*one) for one in options]
    return found


def additive(options):
    rises = {(name, one.format): one.rise for name, each in options.items() for one in each}
    return lambda choice: sum(rises[name, format] for name, format in choice.items())


def smallest(options, within):
    """Bytes of the smallest choice that holds the budget, by trying all."""
    names, rise = list(options), additive(options)
    sizes = []
    for picked in itertools.product(*options.values()):
        choice = {name: one.format for name, one in zip(names, picked)}
        if rise(choice) <= math.log1p(within) and set(choice.values()) != {"float"}:
            sizes.append(sum(one.nbytes for one in picked))
    return min(sizes)


@pytest.mark.parametrize("seed", range(8))
def test_against_all_choices_where_rises_add_up(seed):
    options = tables(seed)
    found = search(options, additive(options), 0.03)
    assert found.best.rise <= math.log1p(0.03)
    assert found.best.nbytes == smallest(options, 0.03)


def test_what_was_found_is_measured_whole_where_rises_do_not_add_up():
    """Every pair costs more than its parts; the budget still holds, and no uniform recipe that
    holds it is smaller."""
    options = tables(3)
    plain = additive(options)

    def measure(choice):
        count = sum(format != "float" for format in choice.values())
        return plain(choice) * (1 + 0.3 * count)

    found = search(options, measure, 0.02)
    assert measure(found.best.choice) == found.best.rise <= math.log1p(0.02)
    held = [one.nbytes for one in found.uniform.values() if one.cost <= 0.02]
    assert all(found.best.nbytes <= nbytes for nbytes in held)


def test_a_budget_that_nothing_holds_names_the_nearest():
    options = tables(0)
    with pytest.raises(ConfigError, match=r"at best, with int8 m\d;.*at most \+0\.0001%"):
        search(options, additive(options), 1e-6)


def test_a_choice_is_rules_of_its_own():
    recipe = recipe_of({"blocks.mlp.up.kernel": "int4", "embedding.table": "float"})
    found = assign(recipe, ["blocks.mlp.up.kernel", "blocks.mlp.upper.kernel", "embedding.table"])
    assert {name: rule.weight for name, rule in found.items()} == {"blocks.mlp.up.kernel": "int4"}


@pytest.fixture(scope="module")
def sampled():
    """A model, and rows drawn from it: no other model predicts them better."""
    model = LanguageModel.build(
        LlamaConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, d_ff=64, init_std=0.3)
    )
    params = model.init(jax.random.key(0))
    rows = np.zeros((24, 33), np.int32)
    step = jax.jit(model.logits)
    for position in range(32):
        logits = step(params, rows[:, :-1])[:, position]
        rows[:, position + 1] = jax.random.categorical(jax.random.key(position), logits)
    return model, params, rows


def silent(_):
    return contextlib.nullcontext(lambda done, total: None)


def refused(recipe):
    raise AssertionError("rounding to nearest needs no text")


@pytest.mark.slow
def test_a_tiny_model_holds_the_budget_on_its_text_and_beats_uniform_recipes(sampled):
    from ziggurat.api.quantizing_mixed import Budget, find_recipe
    from ziggurat.data.tokenizers import byte_level
    from ziggurat.models.loading.pretrained import Pretrained
    from ziggurat.quantize.rounding import Rounding

    model, params, rows = sampled
    loaded = Pretrained(model, params, byte_level(), "tiny", "")
    budget = Budget(0.05, ("int8", "int4"))
    found = find_recipe(loaded, params, budget, Rounding(), rows, refused, silent)
    done = quantize(params, found.recipe, summed_axes(model))
    loss = evaluation.mean_loss(model.logits, rows)
    cost = math.expm1(loss(done.params) - loss(params))
    assert cost == pytest.approx(found.best.cost, abs=1e-6)
    assert cost <= 0.05
    assert found.uniform["int4"].cost > 0.05 > found.uniform["int8"].cost
    assert found.best.nbytes < found.uniform["int8"].nbytes


@pytest.mark.slow
def test_whole_models_are_made_by_a_calibrated_method(sampled):
    """What a method gives counts, not the rounding that ranks matrices."""
    from ziggurat.api.quantizing_mixed import Budget, find_recipe
    from ziggurat.data.tokenizers import byte_level
    from ziggurat.models.loading.pretrained import Pretrained
    from ziggurat.quantize.rounding import Rounding

    model, params, rows = sampled
    loaded, asked = Pretrained(model, params, byte_level(), "tiny", ""), []

    def make(recipe):
        asked.append(recipe)
        return params

    budget, method = Budget(0.001, ("int4",)), Rounding(method="gptq")
    found = find_recipe(loaded, params, budget, method, rows, make, silent)
    assert set(found.best.choice.values()) == {"int4"}
    assert found.best.rise == 0
    assert found.recipe in asked
    assert max(option.rise for each in found.options.values() for option in each) > 0.001
