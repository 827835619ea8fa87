"""Attention over tables of blocks against attention over whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.quick_jit import quick_jit

from ziggurat.kernels.attention import AttentionMask, attention
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.serve.llm.paged import Paged

SLOTS, PAGES, HEADS, KV_HEADS, KEY_DIM, VALUE_DIM = 4, 16, 6, 2, 8, 5
ROWS = [(0, 7), (16, 1), (37, 7), (50, 6), (0, 0)]
"""Tokens in the cache before, and new ones; the last row is padding."""


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


def paged_rows(rows, keys, values):
    """A cache of shuffled blocks with the old tokens of each row, and the rows' tables."""
    count = len(rows) * PAGES + 1
    order = np.random.default_rng(1).permutation(np.arange(1, count))
    tables = np.zeros((len(rows), PAGES), np.int32)
    caches = [np.full((KV_HEADS, count, SLOTS, dim), 99.0) for dim in (KEY_DIM, VALUE_DIM)]
    for row, (length, new) in enumerate(rows):
        used = -(-(length + new) // SLOTS)
        tables[row, :used] = order[row * PAGES : row * PAGES + used]
        for place in range(length):
            block = tables[row, place // SLOTS]
            for cache, whole in zip(caches, (keys, values)):
                cache[:, block, place % SLOTS] = whole[row, place]
    return tuple(jnp.asarray(x, jnp.float32) for x in caches), jnp.asarray(tables)


@pytest.fixture(scope="module")
def attend():
    def run(query, key, value, pages, state, sinks, rule):
        positions = pages.positions(query.shape[1])
        return pages.attend(query, key, value, positions, rule, state, sinks)

    return quick_jit(run, static_argnums=6)


@pytest.mark.parametrize(
    ("window", "softcap", "sinks", "span"),
    [
        (None, None, False, 64),
        (None, 2.0, True, 16),
        (5, None, True, 64),
        (5, None, False, 8),
        (40, 2.0, False, 16),
    ],
)
def test_rows_of_different_length_attend_as_each_alone(attend, window, softcap, sinks, span):
    """float32: sums in another order, 2e-6 on values of about 1."""
    width, total = max(new for _, new in ROWS), max(map(sum, ROWS))
    whole = [draw(len(ROWS), total, KV_HEADS, d, seed=d) for d in (KEY_DIM, VALUE_DIM)]
    query = draw(len(ROWS), width, HEADS, KEY_DIM, seed=3)
    state, tables = paged_rows(ROWS, *whole)
    start, counts = (jnp.asarray(part) for part in zip(*ROWS))
    at = jnp.minimum(start[:, None] + jnp.arange(width), total - 1)[:, :, None, None]
    new = [jnp.take_along_axis(x, at, axis=1) for x in whole]
    sink = draw(HEADS, seed=4) if sinks else None
    rule = AttentionRule(0.3, window=window, softcap=softcap)
    out, after = attend(query, *new, Paged(tables, start, counts, span), state, sink, rule)
    assert bool(jnp.isfinite(out).all())
    for row, (length, count) in enumerate(ROWS):
        if count == 0:
            continue
        own = [x[row : row + 1, : length + count] for x in whole]
        positions = length + jnp.arange(count)[None]
        mask = AttentionMask(positions, jnp.arange(length + count)[None], window=window)
        mine = query[row : row + 1, :count]
        expected = attention(mine, *own, mask, scale=0.3, softcap=softcap, sinks=sink)
        np.testing.assert_allclose(out[row : row + 1, :count], expected, atol=2e-6)
        for cache, full in zip(after, own):
            kept = cache[:, tables[row]].reshape(KV_HEADS, PAGES * SLOTS, -1)
            np.testing.assert_array_equal(kept[:, : length + count].transpose(1, 0, 2), full[0])


def test_padding_writes_to_the_sink_alone():
    state = tuple(jnp.full((1, 4, 2, 3), 7.0) for _ in range(2))
    pages = Paged(jnp.array([[2, 0], [0, 0]]), jnp.array([1, 0]), jnp.array([1, 0]))
    new = draw(2, 3, 1, 3)
    rule = AttentionRule(1.0)
    _, (keys, _) = pages.attend(new, new, new, pages.positions(3), rule, state)
    changed = np.asarray(keys != 7.0).any(axis=(0, 3))
    assert changed[1:].tolist() == [[False, False], [False, True], [False, False]]
    np.testing.assert_array_equal(keys[0, 2, 1], new[0, 0, 0])


def test_positions_of_padding_repeat_the_last():
    pages = Paged(jnp.zeros((2, 1), jnp.int32), jnp.array([5, 0]), jnp.array([2, 0]))
    assert pages.positions(4).tolist() == [[5, 6, 6, 6], [0, 0, 0, 0]]
    moved = pages.advance((), 4)
    assert jax.tree.leaves(moved.start)[0].tolist() == [7, 0]
