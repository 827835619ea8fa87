"""Attention: the grouped form equals the reference over a table of shapes, masks and types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.attention import IMPLEMENTATIONS, AttentionMask, attention

SHAPES = [  # b, t, s, h, k, c
    (1, 1, 1, 1, 1, 2),
    (2, 7, 7, 4, 4, 8),
    (2, 7, 7, 6, 2, 4),
    (1, 5, 5, 8, 1, 16),
    (3, 1, 9, 4, 2, 8),
    (2, 4, 11, 6, 3, 6),
]
MASKS = {
    "causal": {},
    "all": {"causal": False},
    "window": {"window": 3},
    "segments": {"segments": True},
    "segments-window": {"segments": True, "window": 2},
}
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]


def inputs(shape, dtype=jnp.float32, seed=0):
    b, t, s, h, k, c = shape
    rng = np.random.default_rng(seed)

    def draw(*dims):
        return jnp.asarray(rng.normal(size=dims), dtype)

    return draw(b, t, h, c), draw(b, s, k, c), draw(b, s, k, c)


def mask(shape, causal=True, window=None, segments=False) -> AttentionMask:
    """Queries are the last ``t`` of ``s`` positions; with segments, documents of three tokens."""
    b, t, s = shape[:3]
    keys = np.broadcast_to(np.arange(s), (b, s))
    numbers = keys // 3 + 1
    if segments:
        keys = keys % 3
    parts = [keys[:, s - t :], keys]
    if segments:
        parts += [numbers[:, s - t :], numbers]
    arrays = [jnp.asarray(part, jnp.int32) for part in parts]
    return AttentionMask(*arrays, causal=causal, window=window)


def by_hand(query, key, value, visible, scale, softcap):
    """One score at a time, float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    b, t, h, c = query.shape
    out = np.zeros((b, t, h, c))
    for row, at, head in np.ndindex(b, t, h):
        shared = head // (h // key.shape[2])
        scores = key[row, :, shared] @ query[row, at, head] * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.where(visible[row, at], np.exp(scores - scores.max()), 0)
        out[row, at, head] = weights / weights.sum() @ value[row, :, shared]
    return out


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("name", MASKS)
def test_reference_is_the_definition(name, softcap):
    shape = (2, 4, 11, 6, 3, 6)
    args, who = inputs(shape), mask(shape, **MASKS[name])
    found = attention(*args, who, scale=0.7, softcap=softcap, implementation="reference")
    expected = by_hand(*args, np.asarray(who.dense()), 0.7, softcap)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", FAST)
def test_fast_forms_equal_the_reference_with_gradients(implementation, shape, name, softcap):
    args, who = inputs(shape), mask(shape, **MASKS[name])
    weights = jnp.cos(jnp.arange(args[0].size, dtype=jnp.float32)).reshape(args[0].shape)

    def run(implementation):
        def loss(query, key, value):
            out = attention(
                query, key, value, who, scale=0.5, softcap=softcap, implementation=implementation
            )
            return (out * weights).sum(), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)

    (_, expected), expected_gradients = jax.jit(run, static_argnums=0)("reference")
    (_, found), gradients = jax.jit(run, static_argnums=0)(implementation)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)
    for gradient, other in zip(gradients, expected_gradients):
        np.testing.assert_allclose(gradient, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
def test_bfloat16_stays_near_float32(implementation, shape):
    """Inputs, weights and results are rounded to 8 bits; scores and softmax are not."""
    args, who = inputs(shape, jnp.bfloat16), mask(shape)
    wide = (x.astype(jnp.float32) for x in args)
    expected = attention(*wide, who, scale=0.5, implementation="reference")
    found = attention(*args, who, scale=0.5, implementation=implementation)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03, rtol=0.01)


@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
def test_a_query_that_sees_nothing_gives_no_nan(implementation):
    who = AttentionMask(
        jnp.arange(3)[None], jnp.arange(3)[None], jnp.array([[1, 9, 1]]), jnp.array([[1, 1, 1]])
    )
    args = inputs((1, 3, 3, 2, 1, 4))

    def total(query):
        return attention(query, *args[1:], who, scale=1.0, implementation=implementation).sum()

    assert np.isfinite(total(args[0]))
    assert np.isfinite(jax.grad(total)(args[0])).all()


def test_hidden_keys_have_no_influence():
    shape = (1, 6, 6, 2, 1, 4)
    query, key, value = inputs(shape)
    who = mask(shape, segments=True)
    before = attention(query, key, value, who, scale=1.0)
    after = attention(query, key.at[:, :3].set(99.0), value.at[:, :3].set(99.0), who, scale=1.0)
    np.testing.assert_array_equal(before[:, 3:], after[:, 3:])
    assert (before[:, :3] != after[:, :3]).any()


def test_mask_by_hand():
    positions = jnp.array([[0, 1, 0, 1, 2]])
    documents = jnp.array([[1, 1, 2, 2, 2]])
    who = AttentionMask(positions, positions, documents, documents, window=2)
    assert who.dense()[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_auto_and_unknown_implementation():
    args, who = inputs((1, 2, 2, 2, 1, 4)), mask((1, 2, 2))
    auto = attention(*args, who, scale=1.0)
    np.testing.assert_array_equal(auto, attention(*args, who, scale=1.0, implementation="grouped"))
    with pytest.raises(ConfigError, match=r"found 'groupd'.*did you mean grouped\?"):
        attention(*args, who, scale=1.0, implementation="groupd")
