"""A weight type that this file registers: named in a recipe, quantised to, packed, multiplied by,
saved and read back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.data.tokenizers import byte_level
from ziggurat.kernels.linear import project
from ziggurat.kernels.linear.weight_types import decoded, nearest
from ziggurat.kernels.weight_types import WEIGHT_TYPES, ValueType
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import quantized, summed_axes
from ziggurat.quantize.recipe import Recipe
from ziggurat.quantize.weights import quantize

OCTAL = ValueType(2, 1, table=(-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0))
RULE = 'rules = [{ module_path = "blocks/.*", weight = "octal", tile_size = 16 }]'


@pytest.fixture
def octal(monkeypatch):
    monkeypatch.setattr(WEIGHT_TYPES, "_entries", {**WEIGHT_TYPES._entries})
    WEIGHT_TYPES.add("octal", OCTAL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int2", "int3", "int5", "int6", "nf4", "iq4", "fp4_e2m1"])
def test_values_are_rounded_to_the_nearest_level(name):
    kind = WEIGHT_TYPES[name]
    levels = np.array(kind.levels, np.float32)
    assert len(levels) == 2**kind.bits
    weight = np.random.default_rng(0).normal(0, 1, (8, 16)).astype(np.float32)
    low, high, scale = nearest(jnp.asarray(weight), kind, -1, 8)
    found = decoded(low, high, -1, kind).reshape(8, 2, 8)
    scaled = weight.reshape(8, 2, 8) / np.asarray(scale)[..., None]
    off = np.abs(scaled[..., None] - levels)
    np.testing.assert_allclose(np.abs(found - scaled), off.min(-1), atol=1e-6)
    assert np.abs(scaled).max() <= np.abs(levels).max() * (1 + 1e-6)


@pytest.mark.slow
def test_a_tile_of_zeros_stays_zero_where_zero_is_a_level():
    low, _, scale = nearest(jnp.zeros((1, 8)), WEIGHT_TYPES["int2"], -1, None)
    np.testing.assert_array_equal(decoded(low, None, -1, WEIGHT_TYPES["int2"]) * scale, 0.0)


def test_only_declared_types_may_be_named():
    with pytest.raises(ConfigError, match=r"weight: found 'octal', expected one of fp8_e4m3, .*"):
        config.parse(Recipe, RULE)
    with pytest.raises(ConfigError, match="found 'uint4'"):  # read from files only
        config.parse(Recipe, RULE.replace("octal", "uint4"))


def test_what_a_type_does_not_declare_is_refused(octal):
    for key, says in [
        ("symmetric = false", "true, or an int4 or int8 weight"),
        ('activation = "int8"', "int4 or int8 weights with it, or octal without activation"),
    ]:
        with pytest.raises(ConfigError, match=says):
            config.parse(Recipe, RULE.replace("tile_size = 16", key))


@pytest.mark.slow
def test_from_the_recipe_to_a_checkpoint_and_back(octal, tmp_path):
    model = LanguageModel.build(
        LlamaConfig(vocab_size=257, d_model=32, n_layers=2, n_heads=2, d_ff=64, init_std=0.1)
    )
    params = model.init(jax.random.key(0))
    done = quantize(params, config.parse(Recipe, RULE).value, summed_axes(model))
    assert len(done.formats) == 7
    assert 0.05 < np.mean([error.relative_error for error in done.errors]) < 0.25
    kernel = done.params["blocks"]["mlp"]["up"]["kernel"]
    assert (kernel.qvalue.shape, kernel.high.shape) == ((2, 8, 64), (2, 4, 64))  # 3 bits a value
    small = quantized(model, done.formats)
    x = jax.random.normal(jax.random.key(1), (3, 32))
    np.testing.assert_allclose(project(x, kernel[0]), x @ kernel[0].dequantized(), atol=1e-5)
    saved = pretrained.save(
        pretrained.Pretrained(small, done.params, byte_level(), "tiny", ""), tmp_path / "small"
    )
    back = pretrained.load(saved)
    tokens = jnp.arange(16)[None]
    logits = jax.jit(model.logits)(done.params, tokens)
    np.testing.assert_array_equal(jax.jit(back.model.logits)(back.params, tokens), logits)
