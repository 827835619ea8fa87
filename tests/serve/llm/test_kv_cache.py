"""The attention context over tables of blocks; its attention is tested with the kernel."""

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import CacheShape
from ziggurat.serve.llm.kv_cache import KVCache, Paged

SHAPES = [CacheShape(2, 4, 4), CacheShape(1, 6, 5), CacheShape(2, 4, 4)]


def test_positions_of_padding_repeat_the_last():
    pages = Paged(jnp.zeros((2, 1), jnp.int32), jnp.array([5, 0]), jnp.array([2, 0]))
    assert pages.positions(4).tolist() == [[5, 6, 6, 6], [0, 0, 0, 0]]
    moved = pages.advance((), 4)
    assert jax.tree.leaves(moved.start)[0].tolist() == [7, 0]


def test_layers_of_equal_shape_share_a_pool():
    pools = KVCache.empty(SHAPES, 3, 2, jnp.float32)
    found = [(pool.keys.shape, pool.values.shape) for pool in pools.pools]
    assert found == [((2, 6, 2, 4), (2, 6, 2, 4)), ((1, 3, 2, 6), (1, 3, 2, 5))]
    assert [int(pools.of(layer).first) for layer in range(3)] == [0, 0, 3]


def test_a_layer_finds_in_the_pool_what_it_alone_has_put_there():
    """Two tokens, one after the other: each layer attends as with a cache of its own."""
    rng = np.random.default_rng(0)

    def drawn(heads, size):
        return jnp.asarray(rng.normal(size=(1, 1, heads, size)), jnp.float32)

    together = KVCache.empty(SHAPES, 3, 2, jnp.float32)
    alone = [KVCache.empty([shape], 3, 2, jnp.float32) for shape in SHAPES]
    for start in range(2):
        context = Paged(jnp.array([[2, 0]]), jnp.array([start]), jnp.array([1]))
        for layer, s in enumerate(SHAPES):
            new = [drawn(heads, size) for heads, size in ((2, s.key_dim), (s.kv_heads, s.key_dim))]
            new += [drawn(s.kv_heads, s.value_dim), context.positions(1), AttentionRule(0.5)]
            out, state = context.attend(*new, together.of(layer))
            together = together.after(layer, state)
            expected, own = context.attend(*new, alone[layer].of(0))
            alone[layer] = alone[layer].after(0, own)
            np.testing.assert_array_equal(out, expected)
