"""The encoder's parts by themselves: biased attention, inputs, pooling, relative positions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ziggurat.core.errors import ConfigError, ShapeError
from ziggurat.kernels.attention import IMPLEMENTATIONS, AttentionMask, attention
from ziggurat.models import BertConfig, Dinov2Config, EncoderModel, ModernBertConfig
from ziggurat.nn import (
    AttentionRule,
    BlockConfig,
    Causal,
    Decoder,
    DecoderConfig,
    GatedMlpConfig,
    GroupedAttentionConfig,
    LayerConfig,
    NormConfig,
    RopeConfig,
)
from ziggurat.nn.encoder import Encoder, EncoderConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig, cubic_weights, resized_positions
from ziggurat.nn.pooling import pool
from ziggurat.nn.precision import Precision
from ziggurat.nn.relative_positions import RelativePositions, RelativePositionsConfig
from ziggurat.nn.rope import LongRopeScaling
from ziggurat.nn.stacking import stack_name

BERT = BertConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, max_sequence_length=8)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_a_bias_joins_the_scores_in_both_plain_forms():
    """Against the softmax written out; two query heads share a key head."""
    query, key, value = draw(2, 5, 4, 8), draw(2, 5, 2, 8, seed=1), draw(2, 5, 2, 8, seed=2)
    bias, places = draw(4, 5, 5, seed=3), jnp.broadcast_to(jnp.arange(5)[None], (2, 5))
    seen = jnp.asarray([[1] * 5, [1] * 3 + [0] * 2])
    mask = AttentionMask(places, places, jnp.ones_like(seen), seen, causal=False)
    wide = [jnp.repeat(x, 2, axis=2) for x in (key, value)]
    scores = jnp.einsum("bthc,bshc->bhts", query, wide[0]) * 0.5 + bias[None]
    weights = jax.nn.softmax(jnp.where(seen[:, None, None] > 0, scores, -1e30), axis=-1)
    expected = jnp.einsum("bhts,bshc->bthc", weights, wide[1])
    for name in ("auto", "grouped", "reference"):
        found = attention(query, key, value, mask, scale=0.5, bias=bias, implementation=name)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for name in set(IMPLEMENTATIONS) - {"grouped", "reference"}:
        with pytest.raises(ConfigError):
            attention(query, key, value, mask, scale=0.5, bias=bias, implementation=name)


@pytest.mark.slow
def test_padding_changes_no_state():
    for config in (
        BERT,
        ModernBertConfig(
            vocab_size=32, d_model=16, n_layers=4, n_heads=2, window=2, max_sequence_length=8
        ),
    ):
        model = EncoderModel.build(config)
        params = model.init(jax.random.key(1))
        short = model.hidden(params, jnp.array([[3, 4, 5]]))
        padded = model.hidden(
            params, jnp.array([[3, 4, 5, 9, 9, 0]]), jnp.array([[1, 1, 1, 0, 0, 0]])
        )
        np.testing.assert_allclose(padded[:, :3], short, atol=1e-5)


@pytest.mark.slow
def test_scalings_that_depend_on_the_length_go_by_the_row():
    """LongRoPE: beyond the original length another list of factors, counted without padding."""
    scaling = LongRopeScaling(short_factor=(1.0,) * 4, long_factor=(3.0,) * 4, original_length=4)

    def hidden(scaling, ids, mask=None):
        rope = RopeConfig(theta=100.0, scaling=scaling)
        config = ModernBertConfig(
            vocab_size=32, d_model=16, n_layers=2, n_heads=2, window=2, max_sequence_length=8,
            rope=rope, local_rope=rope, init_std=0.5,
        )  # fmt: skip
        model = EncoderModel.build(config)
        return model.hidden(model.init(jax.random.key(1)), jnp.asarray(ids), mask)

    long = dataclasses.replace(scaling, short_factor=scaling.long_factor)
    ids = jnp.arange(3, 9)[None]
    np.testing.assert_allclose(hidden(scaling, ids), hidden(long, ids), atol=1e-6)
    short = hidden(scaling, ids[:, :4])
    assert np.abs(short - hidden(long, ids[:, :4])).max() > 1e-3
    mask = (jnp.arange(6) < 4).astype(jnp.int32)[None]
    np.testing.assert_allclose(hidden(scaling, ids, mask)[:, :4], short, atol=1e-5)


LAYER = LayerConfig(
    block=BlockConfig(
        mixer=GroupedAttentionConfig(heads=4, kv_heads=2, head_dim=4),
        mlp=GatedMlpConfig(hidden=24, activation="silu"),
        norm=NormConfig(eps=1e-5),
    ),
    rule=AttentionRule(0.5),
    rope=RopeConfig(theta=100.0),
)
LOCAL = dataclasses.replace(LAYER, rule=AttentionRule(0.5, window=3), rope=RopeConfig(theta=50.0))
OTHER = dataclasses.replace(
    LAYER,
    block=dataclasses.replace(
        LAYER.block, mixer=GroupedAttentionConfig(heads=2, kv_heads=2, head_dim=8)
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers",
    [(LAYER,) * 3, (LOCAL, LOCAL, LAYER) * 2 + (LOCAL,), (LAYER, OTHER, LAYER, OTHER, OTHER)],
    ids=["alike", "windows", "two stacks"],
)
def test_an_encoder_that_sees_earlier_tokens_only_is_a_decoder(layers):
    """Encoder and decoder scan their layers apart; this test holds the two equal: same weights,
    same states and same gradients."""
    shared: Any = {"d_model": 16, "layers": layers, "init_std": 0.3}
    decoder = Decoder(
        DecoderConfig(vocab_size=40, norm=NormConfig(eps=1e-5), tie_embeddings=True, **shared),
        precision=Precision(),
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )
    encoder = Encoder(
        EncoderConfig(
            input=TokenInputConfig(vocab_size=40),
            final_norm=NormConfig(eps=1e-5),
            causal=True,
            **shared,
        ),
        precision=Precision(),
        rngs=nnx.Rngs(params=jax.random.key(1)),
    )
    names = [stack_name(number) for number in range(len(decoder.config.stacks))]
    for name in (*names, "final_norm"):
        nnx.update(getattr(encoder, name), nnx.state(getattr(decoder, name)))
    nnx.update(encoder.input.embedding, nnx.state(decoder.embedding))
    tokens = jnp.arange(14).reshape(2, 7) * 3 % 40
    positions = jnp.broadcast_to(jnp.arange(7)[None], (2, 7))

    def run(module, call):
        graph, weights = nnx.split(module)

        def total(weights):
            hidden = call(nnx.merge(graph, weights))
            return jnp.sum(hidden**2), hidden

        (_, hidden), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(weights)
        return hidden, jax.tree.leaves([slopes[name] for name in names])

    expected, slopes = run(decoder, lambda module: module(tokens, positions, Causal())[0])
    found, others = run(encoder, lambda module: module(tokens))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for one, other in zip(slopes, others, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_windows_hide_what_is_farther_to_either_side():
    config = ModernBertConfig(
        vocab_size=32, d_model=16, n_layers=1, n_heads=2, window=2, pattern=("local",)
    )
    model = EncoderModel.build(config)
    params = model.init(jax.random.key(0))
    first = model.hidden(params, jnp.array([[3, 4, 5, 6, 7, 8, 9]]))
    other = model.hidden(params, jnp.array([[3, 4, 5, 6, 7, 8, 20]]))
    moved = np.abs(np.asarray(first - other)).max(-1)[0] > 1e-7
    assert moved.tolist() == [False] * 4 + [True] * 3


@pytest.mark.parametrize(
    ("tokens", "details", "part"),
    [
        (jnp.ones((1, 9), jnp.int32), {}, "found 9 tokens; expected at most 8"),
        (jnp.ones((1, 3, 8, 8)), {}, None),
    ],
    ids=["too-long", "images"],
)
def test_other_inputs_are_refused(tokens, details, part):
    model = EncoderModel.build(BERT)
    params = model.init(jax.random.key(0))
    with pytest.raises(ShapeError if part else Exception, match=part):
        model.hidden(params, tokens, **details)


def test_token_types_need_their_table():
    module = TokenInputConfig(vocab_size=8).build(4, 0.1, Precision(), nnx.Rngs(0))
    ids = jnp.array([[1, 2]])
    assert module(ids).shape == (1, 2, 4)
    with pytest.raises(ShapeError, match="no table"):
        module(ids, token_types=ids)


def test_positions_behind_padding():
    """As RoBERTa: padding has its own row, and the first token the one behind it."""
    config = TokenInputConfig(vocab_size=8, positions=10, padding_id=3)
    assert config.max_length == 6
    module = config.build(4, 0.1, Precision(), nnx.Rngs(0))
    rows = module._rows(jnp.array([[5, 3, 6, 7]]), jnp.array([[1, 1, 1, 0]]))
    assert rows.tolist() == [[4, 3, 5, 3]]


@pytest.mark.slow
def test_hidden_patches_are_the_mask_token():
    config = Dinov2Config(
        d_model=16, n_layers=1, n_heads=2, image_size=(8, 8), patch_size=(4, 4), registers=2
    )
    model = EncoderModel.build(config)
    params = model.init(jax.random.key(0))
    first, second = draw(1, 3, 8, 8), draw(1, 3, 8, 8, seed=1)
    all_hidden = jnp.ones((1, 4), bool)
    hidden = [model.hidden(params, x, hidden_patches=all_hidden) for x in (first, second)]
    np.testing.assert_array_equal(*hidden)
    assert hidden[0].shape == (1, 1 + 2 + 4, 16)
    bare = EncoderModel.build(dataclasses.replace(config, mask_token=False))
    with pytest.raises(ShapeError, match="no mask token"):
        bare.hidden(bare.init(jax.random.key(0)), first, hidden_patches=all_hidden)
    for wrong in (draw(1, 1, 8, 8), draw(1, 3, 3, 8)):
        with pytest.raises(ShapeError, match="expected 3 channels of at least 4 x 4"):
            model.hidden(params, wrong)


def test_resized_positions_keep_a_plane():
    """Cubic convolution with a = -0.5 reproduces what is linear, away from the border."""
    plane = jnp.asarray([[r + 2.0 * c] for r in range(8) for c in range(8)])
    found = resized_positions(plane, (8, 8), (16, 16), antialias=True)
    found = np.asarray(found).reshape(16, 16)
    r, c = (np.arange(16) + 0.5) / 2 - 0.5, (np.arange(16) + 0.5) / 2 - 0.5
    expected = r[:, None] + 2 * c[None]
    np.testing.assert_allclose(found[4:-4, 4:-4], expected[4:-4, 4:-4], atol=1e-5)
    for antialias in (False, True):
        for new in (3, 5, 8, 20):
            np.testing.assert_allclose(cubic_weights(8, new, antialias).sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(resized_positions(plane, (8, 8), (8, 8)), plane)


def test_relative_positions_are_classes_of_distances():
    c = RelativePositionsConfig(heads=2, rows=32)
    module = RelativePositions(c, 0.1, Precision(), nnx.Rngs(0))
    bias = np.asarray(module(jnp.arange(300)))
    table = np.asarray(module.table[...])
    assert bias.shape == (2, 300, 300)
    for query, key, row in ((0, 0, 0), (7, 0, 7), (0, 7, 16 + 7), (299, 0, 15), (0, 299, 31)):
        np.testing.assert_array_equal(bias[:, query, key], table[row])


def test_pooling_of_the_first_and_the_mean_of_the_rest():
    states = draw(2, 6, 3)
    found = pool(states, None, "first_and_mean", 3)
    np.testing.assert_allclose(found[:, :3], states[:, 0])
    np.testing.assert_allclose(found[:, 3:], states[:, 3:].mean(1), atol=1e-6)
    gaps = jnp.asarray([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(pool(states, gaps, "last"), states[jnp.arange(2), [1, 4]])
