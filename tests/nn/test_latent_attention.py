"""Latent attention: the compressed form that a cache holds gives what the expanded form gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ziggurat.kernels.linear import WeightFormat
from ziggurat.nn import (
    AttentionRule,
    Cached,
    Causal,
    LatentAttentionConfig,
    NormConfig,
    Precision,
    RopeConfig,
)
from ziggurat.nn.rope import rotation
from ziggurat.quantize.weights import quantize_array

CONFIG = LatentAttentionConfig(
    heads=3,
    query_latent=10,
    latent=8,
    plain_dim=6,
    rotary_dim=4,
    value_dim=5,
    norm=NormConfig(eps=1e-6),
    bias=True,
)
WIDTH, ROWS, TOKENS = 12, 2, 9


@pytest.mark.parametrize(
    ("query_latent", "format"),
    [(10, None), (None, None), (None, WeightFormat("int8", "int8")), (None, WeightFormat("int8"))],
)
def test_absorbed_equals_expanded(query_latent, format):
    """Tolerance 1e-5 on results of order one: the same products in another order. Quantised, the
    compressed vector is rounded once and cached so."""
    config = dataclasses.replace(CONFIG, query_latent=query_latent)
    built = config.build(WIDTH, 0.3, Precision(), nnx.Rngs(params=0))
    graph, state = nnx.split(built)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), state)
    if format is not None:
        kernel = quantize_array(state["expand"]["kernel"][...], format, -2)
        state["expand"]["kernel"] = state["expand"]["kernel"].replace(kernel)
    x = jnp.asarray(rng.normal(size=(ROWS, TOKENS, WIDTH)), jnp.float32)
    spec = config.state
    assert (spec.kv_heads, spec.key_dim, spec.value_dim) == (1, 12, 8)
    cache = Cached.empty([(spec, 1)], ROWS, 12, jnp.float32)

    @jax.jit
    def both(state, x, cache):
        positions = jnp.broadcast_to(jnp.arange(TOKENS)[None], (ROWS, TOKENS))
        angles, rule = rotation(positions, RopeConfig(theta=50.0), 4), AttentionRule(0.3, window=5)
        module = nnx.merge(graph, state)
        expanded, nothing = module(x, positions, angles, rule, Causal(), ())
        assert nothing == ()
        layer = jax.tree.map(lambda leaf: leaf[0], cache.states[0])
        absorbed, kept = module(x, positions, angles, rule, cache, layer)
        return expanded, absorbed, kept

    expanded, absorbed, kept = both(state, x, cache)
    keys, values = kept.keys, kept.values
    assert np.std(expanded) > 0.1
    np.testing.assert_allclose(absorbed, expanded, atol=1e-5)
    np.testing.assert_array_equal(keys[..., :8], values)
