"""Inputs beside token ids: embeddings at places, and positions of several axes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ziggurat.core.errors import ShapeError
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.unstacked import Unstacked, hidden
from ziggurat.nn import Causal, MultimodalInputs, RopeConfig
from ziggurat.nn.rope import axis_of_frequency, rotation

CONFIG = LlamaConfig(
    vocab_size=32,
    d_model=16,
    n_layers=2,
    n_heads=2,
    rope=RopeConfig(theta=50.0, sections=(2, 1, 1)),
)
TOKENS = jnp.array([[3, 7, 7, 5, 2], [4, 7, 6, 1, 8]])
PLACES = jnp.array([[1, 2], [1, 5]])  # the last is padding


@pytest.fixture(scope="module")
def model():
    built = LanguageModel.build(CONFIG)
    return built, built.init(jax.random.key(0))


def table(params):
    return params["embedding"]["table"]


def test_an_embedding_stands_in_its_tokens_place(model):
    """Given the vectors of other tokens, the logits are those of the other tokens."""
    model, params = model
    other = TOKENS.at[0, 1].set(9).at[0, 2].set(11).at[1, 1].set(12)
    vectors = table(params)[jnp.array([[9, 11], [12, 13]])]
    inputs = MultimodalInputs(vectors, PLACES)
    found = model.logits(params, TOKENS, inputs=inputs)
    np.testing.assert_allclose(found, model.logits(params, other), atol=1e-6)
    assert float(jnp.abs(found - model.logits(params, TOKENS)).max()) > 1e-3


@pytest.mark.slow
def test_gradients_reach_the_embeddings_and_not_the_tokens_below():
    model = LanguageModel.build(dataclasses.replace(CONFIG, tie_embeddings=False))
    params = model.init(jax.random.key(0))

    def loss(vectors, params):
        logits = model.logits(params, TOKENS, inputs=MultimodalInputs(vectors, PLACES))
        return (logits**2).sum()

    vectors, weights = jax.grad(loss, argnums=(0, 1))(jnp.ones((2, 2, 16)), params)
    assert float(jnp.abs(vectors[0]).max()) > 0
    np.testing.assert_array_equal(vectors[1, 1], 0)  # it stands nowhere
    np.testing.assert_array_equal(table(weights)[7], 0)  # token 7 is only below others
    assert float(jnp.abs(table(weights)[3]).max()) > 0


def test_positions_on_equal_axes_are_plain_positions(model):
    model, params = model
    axes = jnp.broadcast_to(jnp.arange(5)[None, :, None], (2, 5, 3))
    found = model.logits(params, TOKENS, inputs=MultimodalInputs(rotary_positions=axes))
    np.testing.assert_array_equal(found, model.logits(params, TOKENS))
    moved = model.logits(params, TOKENS, inputs=MultimodalInputs(rotary_positions=axes * 2))
    assert float(jnp.abs(found - moved).max()) > 1e-4


def test_layers_one_by_one_take_them_too(model):
    model, params = model

    class Nothing:
        def of(self, layer):
            return ()

        def after(self, layer, state):
            return self

    axes = jnp.stack([jnp.arange(5), jnp.arange(5) // 2, jnp.arange(5) % 2], axis=-1)
    axes = jnp.broadcast_to(axes[None], (2, 5, 3))
    added = jax.random.normal(jax.random.key(2), (1, 2, 2, 16))
    inputs = MultimodalInputs(jnp.ones((2, 2, 16)), PLACES, axes, added)
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    scanned, _ = model.hidden(params, TOKENS, positions, Causal(), inputs)
    apart = Unstacked.of(model, params)
    found, _ = hidden(model, apart, TOKENS, positions, Causal(), Nothing(), inputs)
    np.testing.assert_allclose(found, scanned, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("interleaved", [False, True])
def test_axes_of_frequencies_equal_transformers(interleaved):
    import torch
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as following
    from transformers.models.qwen3_vl import modeling_qwen3_vl as turns

    settings = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [8, 4, 4]}
    make = turns.Qwen3VLTextRotaryEmbedding if interleaved else following.Qwen2_5_VLRotaryEmbedding
    config = turns.Qwen3VLTextConfig(head_dim=32, rope_parameters=settings)
    positions = np.random.default_rng(0).integers(0, 50, (2, 6, 3))
    expected = make(config)(torch.zeros(1), torch.tensor(positions).permute(2, 0, 1))
    rope = RopeConfig(theta=100.0, sections=(8, 4, 4), interleaved=interleaved)
    for found, theirs in zip(rotation(jnp.asarray(positions), rope, 32), expected):
        np.testing.assert_allclose(found, theirs[..., :16].numpy(), atol=1e-5)


def test_sections_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="rotary sections: found"):
        axis_of_frequency(RopeConfig(sections=(2, 1)), 4)
    with pytest.raises(ShapeError, match="2 axes"):
        rotation(jnp.zeros((1, 3, 2), int), RopeConfig(sections=(2, 1, 1)), 8)


@pytest.mark.slow
def test_embeddings_behind_the_first_layers_are_added_layer_by_layer(model):
    """The scanned decoder equals one whose layers are called one by one, by hand."""
    built = LanguageModel.build(dataclasses.replace(CONFIG, n_layers=5))
    params = built.init(jax.random.key(1))
    added = jax.random.normal(jax.random.key(2), (2, 2, 2, 16))
    inputs = MultimodalInputs(places=PLACES, by_layer=added)
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    found, _ = built.hidden(params, TOKENS, positions, Causal(), inputs)
    decoder = nnx.merge(built.graph, params)
    x, angles, _ = decoder.begin(TOKENS, positions, Causal())
    for number, layer in enumerate(built.decoder.layers):
        step = decoder.layer_step(layer, positions, angles[number], Causal())
        x, _, _ = step(jax.tree.map(lambda leaf, n=number: leaf[n], params["blocks"]), x, ())
        if number < 2:
            x = x.at[0, 1].add(added[number, 0, 0]).at[0, 2].add(added[number, 0, 1])
            x = x.at[1, 1].add(added[number, 1, 0])  # the other stands nowhere
    np.testing.assert_allclose(found, decoder.finish(x), atol=1e-5)
    with pytest.raises(ShapeError, match="behind 2 layers, and no places"):
        built.hidden(params, TOKENS, positions, Causal(), MultimodalInputs(by_layer=added))
    small = LanguageModel.build(dataclasses.replace(CONFIG, n_layers=1))
    params = small.init(jax.random.key(0))
    with pytest.raises(ShapeError, match="at most 1 layers"):
        small.logits(params, TOKENS, inputs=inputs)
