"""The attention context over tables of blocks; its attention is tested with the kernel."""

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.layer_state import ArraySpec, KeyValueSpec, RecurrentSpec
from ziggurat.serve.llm.kv_cache import CacheSizes, KVCache, Paged

SPECS = [
    KeyValueSpec(kv_heads=2, key_dim=4, value_dim=4, window=3),
    KeyValueSpec(kv_heads=1, key_dim=6, value_dim=5),
    KeyValueSpec(kv_heads=2, key_dim=4, value_dim=4),
]
SIZES = CacheSizes(blocks=3, block_size=2, slots=2)


def test_positions_of_padding_repeat_the_last():
    pages = Paged(
        jnp.zeros((2, 1), jnp.int32), jnp.array([5, 0]), jnp.array([2, 0]), jnp.array([0, 2])
    )
    assert pages.positions(4).tolist() == [[5, 6, 6, 6], [0, 0, 0, 0]]
    moved = pages.advance((), 4)
    assert jax.tree.leaves(moved.start)[0].tolist() == [7, 0]


def test_layers_of_equal_layout_share_a_pool():
    pools = KVCache.empty(SPECS, SIZES, jnp.float32)
    found = [(pool.keys.shape, pool.values.shape) for pool in pools.pools]
    assert found == [((2, 6, 2, 4), (2, 6, 2, 4)), ((1, 3, 2, 6), (1, 3, 2, 5))]
    assert [int(pools.of(layer).first) for layer in range(3)] == [0, 0, 3]


def test_a_layer_finds_in_the_pool_what_it_alone_has_put_there():
    """Two tokens, one after the other: each layer attends as with a cache of its own."""
    rng = np.random.default_rng(0)

    def drawn(heads, size):
        return jnp.asarray(rng.normal(size=(1, 1, heads, size)), jnp.float32)

    together = KVCache.empty(SPECS, SIZES, jnp.float32)
    alone = [KVCache.empty([spec], SIZES, jnp.float32) for spec in SPECS]
    for start in range(2):
        context = Paged(jnp.array([[2, 0]]), jnp.array([start]), jnp.array([1]), jnp.array([0]))
        for layer, s in enumerate(SPECS):
            new = [drawn(heads, size) for heads, size in ((2, s.key_dim), (s.kv_heads, s.key_dim))]
            new += [drawn(s.kv_heads, s.value_dim), context.positions(1), AttentionRule(0.5)]
            out, state = context.attend(*new, together.of(layer))
            together = together.after(layer, state)
            expected, own = context.attend(*new, alone[layer].of(0))
            alone[layer] = alone[layer].after(0, own)
            np.testing.assert_array_equal(out, expected)


def test_a_slot_s_state_is_its_row_s_alone_and_begins_at_zero():
    spec = RecurrentSpec((ArraySpec((2,), (None,)), ArraySpec((3,), ("heads",), jnp.float32)))
    cache = KVCache.empty([SPECS[0], spec, spec], SIZES, jnp.bfloat16)
    assert [leaf.shape for leaf in cache.pools[1]] == [(6, 2), (6, 3)]
    assert [leaf.dtype for leaf in cache.pools[1]] == [jnp.bfloat16, jnp.float32]

    def step(cache, slots, start, counts, value):
        tables = jnp.zeros((len(slots), 1), jnp.int32)
        context = Paged(tables, jnp.array(start), jnp.array(counts), jnp.array(slots))
        found = []
        for layer in (1, 2):
            rows = context.recurrence(cache.of(layer), 1)
            assert rows.counts.tolist() == counts
            found.append([leaf[:, 0].tolist() for leaf in rows.before])
            new = tuple(leaf + jnp.asarray(value * layer, leaf.dtype) for leaf in rows.before)
            cache = cache.after(layer, rows.store(new))
        return cache, found

    cache, found = step(cache, [1, 0], [0, 0], [1, 1], jnp.array([[1], [2]]))
    assert found == [[[0, 0], [0, 0]]] * 2
    cache, found = step(cache, [0, 2], [1, 0], [1, 0], 10)  # the second row is padding
    assert found == [[[2, 0], [2, 0]], [[4, 0], [4, 0]]]
    cache, found = step(cache, [1, 0], [1, 0], [1, 1], 0)  # slot 0 has another sequence now
    assert found == [[[1, 0], [1, 0]], [[2, 0], [2, 0]]]
