"""Every recurrent mixer in a stack with attention: packed rows, padded prompts, decoding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tests.nn.test_gated_delta_net import ATTENTION, MIXED, MLP, NORM, RECURRENT

from ziggurat.kernels.key_values import ROUNDED
from ziggurat.nn import (
    AttentionRule,
    BlockConfig,
    Cached,
    Causal,
    Decoder,
    LayerConfig,
    Mamba2Config,
    Packed,
    Precision,
    ShortConvolutionConfig,
)
from ziggurat.nn.layer_state import stored_as

MAMBA = Mamba2Config(
    heads=4, head_dim=6, groups=2, state_dim=4, taps=4, norm_eps=1e-5, initial_steps=(0.1, 1.0)
)

CONVOLUTION = ShortConvolutionConfig(channels=16, taps=3)


def layer(mixer, mlp=MLP):
    block = BlockConfig(mixer=mixer, mlp=mlp, norm=NORM)
    return LayerConfig(block=block, rule=AttentionRule(1.0), rope=None)


STACKS = {
    name: dataclasses.replace(MIXED, layers=layers)
    for name, layers in {
        "delta_net": (RECURRENT, RECURRENT, ATTENTION) * 2,
        "mamba": (layer(MAMBA, None), layer(MAMBA), ATTENTION) * 2,
        "convolution": (layer(CONVOLUTION), layer(CONVOLUTION), ATTENTION) * 2,
    }.items()
}
"""Decoders by the mixer that stands in them beside attention."""
NEAR = {"int8": 0.1, "fp8_e4m3": 0.3, "fp8_e5m2": 0.6}
"""Tolerances of hidden states with rounded keys and values. A channel is off by a part in 254 of
its head's largest (int8), in 16 of itself (e4m3) or in 8 (e5m2)."""
CLOSE = {"delta_net": 1e-3, "mamba": 1e-4, "convolution": 1e-4}
"""In the delta net vectors scaled to length one after small random weights magnify rounding:
changing weights by one part in a million moves a hidden state of size one by as much."""
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, 40)
every_stack = pytest.mark.parametrize("name", STACKS)


@functools.cache
def runner(name):
    graph, state = nnx.split(Decoder(STACKS[name], precision=Precision(), rngs=nnx.Rngs(params=0)))
    run = jax.jit(lambda *inputs: nnx.merge(graph, state)(*inputs))
    return run, run(TOKENS, positions_of(TOKENS), Causal())[0]


def positions_of(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)


@pytest.mark.slow
@every_stack
def test_packed_documents_are_as_if_alone(name):
    run, full = runner(name)
    assert float(jnp.std(full)) > 0.1
    segments = jnp.array([[1] * 5 + [2] * 7, [1] * 1 + [2] * 8 + [0] * 3])
    positions = jnp.array([[*range(5), *range(7)], [0, *range(8), 0, 0, 0]])
    packed, _ = run(TOKENS, positions, Packed(segments))
    for row, start, end in ((0, 0, 5), (0, 5, 12), (1, 0, 1), (1, 1, 9)):
        tokens = TOKENS[row : row + 1, start:end]
        alone, _ = run(tokens, positions_of(tokens), Causal())
        np.testing.assert_allclose(packed[row, start:end], alone[0], atol=CLOSE[name])


@pytest.mark.slow
@every_stack
@pytest.mark.parametrize("storage", ["compute", *NEAR])
def test_rows_of_different_length_share_a_cache(name, storage):
    """Padded prompts, then token by token; rounded keys and values are near, not equal."""
    run, full = runner(name)
    states = [(stored_as(spec, storage), count) for spec, count in STACKS[name].states]
    lengths, close = jnp.array([7, 4]), NEAR.get(storage, CLOSE[name])
    prompt = jnp.where(jnp.arange(7)[None] < lengths[:, None], TOKENS[:, :7], 39)
    cache = dataclasses.replace(Cached.empty(states, 2, 12, jnp.float32), counts=lengths)
    out, cache = run(prompt, positions_of(prompt), cache)
    assert cache.lengths.tolist() == [7, 4]
    for row, length in enumerate(lengths.tolist()):
        np.testing.assert_allclose(out[row, :length], full[row, :length], atol=close)
    rows = jnp.arange(2)
    for _ in range(5):
        at = cache.lengths
        out, cache = run(TOKENS[rows, at][:, None], at[:, None], cache)
        np.testing.assert_allclose(out[:, 0], full[rows, at], atol=close)
    assert cache.states[-1].keys.dtype == ROUNDED.get(storage, jnp.float32)


@pytest.mark.slow
@every_stack
def test_gradients_reach_every_parameter(name):
    graph, state = nnx.split(Decoder(STACKS[name], precision=Precision(), rngs=nnx.Rngs(params=0)))

    def loss(state):
        hidden, _ = nnx.merge(graph, state)(TOKENS, positions_of(TOKENS), Causal())
        weights = jnp.arange(hidden.shape[-1], dtype=jnp.float32)[None, None]
        return (hidden * weights).sum()

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(state)):
        assert np.isfinite(gradient).all(), path
        assert (gradient != 0).any(), path
