"""Rotary scalings that depend on a sequence's length, in every context."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ShapeError
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.nn import Causal, Packed
from ziggurat.nn.attention_context import Bidirectional, Cached, QueryScaling
from ziggurat.nn.layer_state import KeyValueSpec
from ziggurat.nn.rope import (
    DynamicScaling,
    LongRopeScaling,
    NtkScaling,
    RopeConfig,
    depends_on_length,
    frequencies,
    frequencies_of_length,
    rotation,
)
from ziggurat.serve.llm.kv_cache import Paged

LONG = LongRopeScaling(
    short_factor=(1.0, 1.1, 1.3, 1.7),
    long_factor=(1.0, 2.0, 5.0, 9.0),
    original_length=8,
    attention_factor=1.2,
)
DYNAMIC = DynamicScaling(factor=4.0, original_length=8)
SCALINGS = {"longrope": LONG, "dynamic": DYNAMIC}
every_scaling = pytest.mark.parametrize("name", SCALINGS)


def model_of(scaling):
    config = LlamaConfig(
        vocab_size=32, d_model=16, n_layers=2, n_heads=2, d_ff=24, init_std=0.4,
        rope=RopeConfig(theta=50.0, scaling=scaling),
    )  # fmt: skip
    model = LanguageModel.build(config)
    return model, model.init(jax.random.key(0))


def pinned(scaling, length):
    return dataclasses.replace(scaling, context_length=length)


def test_longrope_takes_its_factors_by_the_length():
    rope = RopeConfig(theta=100.0, scaling=LONG)
    plain, _ = frequencies(RopeConfig(theta=100.0), 8)
    found = np.asarray(frequencies_of_length(rope, 8, jnp.array([[8, 9]])))
    np.testing.assert_allclose(found[0, 0], plain / np.array(LONG.short_factor), rtol=1e-6)
    np.testing.assert_allclose(found[0, 1], plain / np.array(LONG.long_factor), rtol=1e-6)
    cos, _ = rotation(jnp.zeros((1, 2), int), rope, 8, jnp.array([[8, 9]]))
    np.testing.assert_allclose(cos, 1.2, rtol=1e-6)


def test_the_base_of_dynamic_scaling_grows_with_the_length():
    rope, dim = RopeConfig(theta=100.0, scaling=DYNAMIC), 8
    found = np.asarray(frequencies_of_length(rope, dim, jnp.array([[3, 8, 20]])))[0]
    for row, length in zip(found, (8, 8, 20)):
        base = 100.0 * (4.0 * length / 8 - 3.0) ** (dim / (dim - 2))
        np.testing.assert_allclose(row, base ** (-np.arange(0, dim, 2) / dim), rtol=1e-5)


def test_ntk_scaling_multiplies_the_base():
    found, _ = frequencies(RopeConfig(theta=100.0, scaling=NtkScaling(alpha=20.0)), 8)
    base = 100.0 * 20.0 ** (8 / 6)
    np.testing.assert_allclose(found, base ** (-np.arange(0, 8, 2) / 8), rtol=1e-5)


@every_scaling
def test_a_fixed_length_goes_before_the_sequences(name):
    scaling = SCALINGS[name]
    free, fixed = (RopeConfig(scaling=s) for s in (scaling, pinned(scaling, 30)))
    assert depends_on_length(free)
    assert not depends_on_length(fixed)
    expected = frequencies_of_length(free, 8, 30)
    np.testing.assert_array_equal(frequencies_of_length(fixed, 8, 1), expected)


def test_wrong_numbers_of_factors_are_refused():
    with pytest.raises(ValueError, match="long_factor"):
        LongRopeScaling(short_factor=(1.0,), long_factor=(1.0, 2.0), original_length=8)
    with pytest.raises(ShapeError, match="4 factors; expected 3"):
        frequencies(RopeConfig(scaling=LONG), 6)


def test_every_context_says_which_length_counts():
    positions = jnp.array([[0, 1, 2, 0, 1, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    packed = Packed(segments).context_length(positions)
    assert packed.tolist() == [[3, 3, 3, 2, 2, 1]]
    assert Causal().context_length(positions).tolist() == [[3] * 6]
    row = jnp.arange(4)[None]
    assert Bidirectional(jnp.array([[1, 1, 0, 0]])).context_length(row).tolist() == [[2] * 4]
    spec = KeyValueSpec(kv_heads=1, key_dim=2, value_dim=2)
    assert Cached.empty([(spec, 1)], 1, 12, jnp.float32).context_length(row) == 12
    tables, zero = jnp.zeros((1, 3), int), jnp.zeros(1, int)
    assert Paged(tables, zero, zero, zero, longest=64).context_length(row) == 64


@pytest.mark.slow
@every_scaling
def test_documents_of_a_packed_row_are_as_by_themselves(name):
    model, params = model_of(SCALINGS[name])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (1, 20)))
    lengths = (6, 14)  # within the original length, and beyond
    segments = jnp.repeat(jnp.array([1, 2]), jnp.array(lengths), total_repeat_length=20)[None]
    positions = jnp.concatenate([jnp.arange(n) for n in lengths])[None]
    found = model.logits(params, tokens, positions, Packed(segments))
    alone = [model.logits(params, part) for part in jnp.split(tokens, [6], axis=1)]
    np.testing.assert_allclose(found, jnp.concatenate(alone, axis=1), atol=2e-5)


@pytest.mark.slow
@every_scaling
def test_a_cache_fed_in_chunks_gives_the_pass_of_its_length(name):
    """The first chunk is within the original length, the cache beyond it."""
    scaling = SCALINGS[name]
    model, params = model_of(scaling)
    known, _ = model_of(pinned(scaling, 16))
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 32, (1, 12)))
    cache, parts = model.cache(1, 16), []
    for part in jnp.split(tokens, [5, 9, 10, 11], axis=1):
        positions = cache.lengths[:, None] + jnp.arange(part.shape[1])[None]
        hidden, cache = model.hidden(params, part, positions, cache)
        parts.append(model.project(params, hidden))
    found = jnp.concatenate(parts, axis=1)
    np.testing.assert_allclose(found, known.logits(params, tokens), atol=2e-5)
    # and it is not the pass of another length
    assert np.abs(found - known_short(scaling, params, tokens)).max() > 1e-3


def known_short(scaling, params, tokens):
    return model_of(pinned(scaling, 8))[0].logits(params, tokens)


def test_queries_grow_with_their_position():
    found = QueryScaling(0.5, 4).factors(jnp.array([[0, 3, 4, 8]]))[0]
    np.testing.assert_allclose(found, 1 + 0.5 * np.log([1, 1, 2, 3]), rtol=1e-6)
