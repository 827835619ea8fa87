"""Attention over tables of blocks against attention over whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.cpu_library import require_library

from ziggurat.kernels.attention import AttentionMask, attention
from ziggurat.kernels.key_values import KeyValues, dequantized, quantized
from ziggurat.kernels.paged_attention import Rows, cpu, paged_attention

SLOTS, PAGES, HEADS, KV_HEADS, KEY_DIM, VALUE_DIM = 4, 16, 6, 2, 24, 5
ROWS = [(0, 7), (16, 1), (37, 7), (50, 6), (0, 0)]
"""Tokens in the cache before, and new ones; the last row is padding."""
LONG = [(300, 1), (3, 1), (999, 1)]
"""One new token each, far enough apart that a long row's tokens are shared out."""


@pytest.fixture(scope="module", autouse=True)
def built():
    require_library()


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


def paged_rows(rows, keys, values, pages):
    """A cache of shuffled blocks with the old tokens of each row, and the rows' tables."""
    count = len(rows) * pages + 1
    order = np.random.default_rng(1).permutation(np.arange(1, count))
    tables = np.zeros((len(rows), pages), np.int32)
    caches = [np.full((KV_HEADS, count, SLOTS, dim), 99.0) for dim in (KEY_DIM, VALUE_DIM)]
    for row, (length, new) in enumerate(rows):
        used = -(-(length + new) // SLOTS)
        tables[row, :used] = order[row * pages : row * pages + used]
        for place in range(length):
            block = tables[row, place // SLOTS]
            for cache, whole in zip(caches, (keys, values)):
                cache[:, block, place % SLOTS] = whole[row, place]
    return KeyValues(*(jnp.asarray(x, jnp.float32) for x in caches)), jnp.asarray(tables)


def placed(start, counts, width):
    """Positions of new tokens; padding repeats the last."""
    last = jnp.maximum(counts - 1, 0)[:, None]
    return start[:, None] + jnp.minimum(jnp.arange(width)[None], last)


run = jax.jit(
    paged_attention,
    static_argnames=("scale", "softcap", "window", "implementation", "span"),
)
whole_rows = jax.jit(attention, static_argnames=("scale", "softcap"))


def check(lengths, pages, **options):
    """float32: sums in another order, 2e-6 on values of about 1."""
    width, total = max(new for _, new in lengths), max(map(sum, lengths))
    whole = [draw(len(lengths), total, KV_HEADS, d, seed=d) for d in (KEY_DIM, VALUE_DIM)]
    query = draw(len(lengths), width, HEADS, KEY_DIM, seed=3)
    cache, tables = paged_rows(lengths, *whole, pages)
    start, counts = (jnp.asarray(part) for part in zip(*lengths))
    at = jnp.minimum(start[:, None] + jnp.arange(width)[None], total - 1)[:, :, None, None]
    new = [np.take_along_axis(x, np.asarray(at), axis=1) for x in whole]
    rows = Rows(tables, placed(start, counts, width), counts)
    out, after = run(query, *new, cache, rows, scale=0.2, **options)
    assert bool(jnp.isfinite(out).all())
    rule = {name: options.get(name) for name in ("softcap", "sinks")}
    # Slices of arrays of JAX would each be a program to compile.
    out, after, whole, query = jax.tree.map(np.asarray, (out, after, whole, query))
    for row, (length, count) in enumerate(lengths):
        if count == 0:
            continue
        own = [x[row : row + 1, : length + count] for x in whole]
        positions = length + jnp.arange(count)[None]
        places = jnp.arange(length + count)[None]
        mask = AttentionMask(positions, places, window=options.get("window"))
        mine = query[row : row + 1, :count]
        expected = whole_rows(mine, *own, mask, scale=0.2, **rule)
        np.testing.assert_allclose(out[row : row + 1, :count], expected, atol=2e-6)
        for kept, full in zip((after.keys, after.values), own):
            blocks = kept[:, tables[row]].reshape(KV_HEADS, pages * SLOTS, -1)
            np.testing.assert_array_equal(blocks[:, : length + count].transpose(1, 0, 2), full[0])


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("window", "softcap", "sinks"),
    [(None, None, False), (None, 2.0, True), (5, None, True), (40, 2.0, False)],
)
def test_rows_of_different_length_attend_as_each_alone(implementation, window, softcap, sinks):
    sink = draw(HEADS, seed=4) if sinks else None
    rule = {"window": window, "softcap": softcap, "sinks": sink}
    check(ROWS, PAGES, **rule, implementation=implementation)


@pytest.mark.parametrize(("window", "span"), [(None, 16), (5, 8)])
def test_tables_longer_than_a_span_are_read_in_a_loop(window, span):
    check(ROWS, PAGES, window=window, span=span, implementation="reference")


@pytest.mark.slow
@pytest.mark.parametrize(("window", "sinks"), [(None, True), (130, False)])
def test_tokens_of_long_rows_are_shared_out(window, sinks):
    sink = draw(HEADS, seed=4) if sinks else None
    check(LONG, 256, window=window, sinks=sink, implementation="cpu")


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_padding_writes_to_no_one_s_block(implementation):
    cache = KeyValues(*(jnp.full((1, 4, 2, 3), 7.0) for _ in range(2)))
    counts = jnp.array([1, 0])
    rows = Rows(jnp.array([[2, 0], [0, 0]]), placed(jnp.array([1, 0]), counts, 3), counts)
    new = draw(2, 3, 1, 3)
    _, after = paged_attention(new, new, new, cache, rows, scale=1.0, implementation=implementation)
    keys = after.keys
    changed = np.asarray(keys != 7.0).any(axis=(0, 3))
    assert changed[1:].tolist() == [[False, False], [False, True], [False, False]]
    np.testing.assert_array_equal(keys[0, 2, 1], new[0, 0, 0])


def test_what_has_no_kernel_is_left_to_the_definition():
    half = jnp.ones((1, 1, 2, 4), jnp.bfloat16)
    assert not cpu.serves(half, KeyValues(half, half))
    rows = Rows(jnp.array([[1]]), jnp.array([[0]]), jnp.array([1]))
    cache = KeyValues(*(jnp.zeros((2, 2, 4, 4), jnp.bfloat16) for _ in range(2)))
    out, after = paged_attention(half, half, half, cache, rows, scale=1.0)
    assert out.dtype == after.keys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, half)  # one token sees itself alone


@pytest.mark.slow
def test_a_rounded_cache_is_attention_over_rounded_keys_and_values():
    """Old tokens and new ones alike: what is written is what is read, to float32's last bits."""
    width, total = 7, 56
    whole = [draw(len(ROWS), total, KV_HEADS, d, seed=d) for d in (KEY_DIM, VALUE_DIM)]
    near = [dequantized(*quantized(x), jnp.float32) for x in whole]
    plain, tables = paged_rows(ROWS, *whole, PAGES)
    (keys, key_scales), (values, value_scales) = quantized(plain.keys), quantized(plain.values)
    cache = KeyValues(keys, values, key_scales, value_scales)
    start, counts = (jnp.asarray(part) for part in zip(*ROWS))
    at = jnp.minimum(start[:, None] + jnp.arange(width)[None], total - 1)[:, :, None, None]
    rows = Rows(tables, placed(start, counts, width), counts)
    new = [jnp.take_along_axis(x, at, axis=1) for x in whole]
    assert not cpu.serves(new[0], cache)
    query = draw(len(ROWS), width, HEADS, KEY_DIM, seed=3)
    out, after = run(query, *new, cache, rows, scale=0.2)
    assert after.keys.dtype == jnp.int8
    exact, _ = run(query, *new, plain, rows, scale=0.2)
    for row, (length, count) in enumerate(ROWS[:-1]):
        own = [x[row : row + 1, : length + count] for x in near]
        mask = AttentionMask(length + jnp.arange(count)[None], jnp.arange(length + count)[None])
        mine = query[row : row + 1, :count]
        expected = attention(mine, *own, mask, scale=0.2)
        np.testing.assert_allclose(out[row : row + 1, :count], expected, atol=5e-6)
        error = np.abs(np.asarray(out - exact)[row, :count]).max()
        assert 0 < error < 0.03  # half a step of values up to 4, which is 4 / 127 / 2, and keys'
