"""Residual blocks: each placement of norms and each kind of branch against its equation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ziggurat.nn import (
    AttentionRule,
    Block,
    BlockConfig,
    Causal,
    GatedMlpConfig,
    GroupedAttentionConfig,
    NormConfig,
    Precision,
    RopeConfig,
)
from ziggurat.nn.rope import rotation

ATTENTION = GroupedAttentionConfig(heads=4, kv_heads=2, head_dim=4)
CONFIG = BlockConfig(
    mixer=ATTENTION,
    mlp=GatedMlpConfig(hidden=24, activation="silu"),
    norm=NormConfig(eps=1e-5),
)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)
POSITIONS = jnp.broadcast_to(jnp.arange(5), (2, 5))
REST = (POSITIONS, None, AttentionRule(0.5), Causal(), ())


def build(**switches) -> Block:
    """A block whose vectors all differ, so that none can be left out unseen."""
    config = dataclasses.replace(CONFIG, **switches)
    block = Block(config, 16, 0.3, Precision(), nnx.Rngs(0))
    graph, state = nnx.split(block)
    leaves, tree = jax.tree.flatten(state)
    draw = np.random.default_rng(1)
    leaves = [leaf + jnp.asarray(draw.normal(size=leaf.shape) * 0.2) for leaf in leaves]
    return nnx.merge(graph, tree.unflatten(leaves))


def branches(block: Block):
    """The two branches as functions of their input."""
    return lambda x: block.attention(x, *REST)[0], lambda x: block.mlp(x)[0]


def pre(b, a, f):
    y = X + a(b.attention_norm(X))
    return y + f(b.mlp_norm(y))


def post(b, a, f):
    y = b.attention_norm(X + a(X))
    return b.mlp_norm(y + f(y))


def reordered(b, a, f):
    y = X + b.attention_norm(a(X))
    return y + b.mlp_norm(f(y))


def sandwich(b, a, f):
    y = X + b.attention_post_norm(a(b.attention_norm(X)))
    return y + b.mlp_post_norm(f(b.mlp_norm(y)))


def parallel(b, a, f):
    return X + a(b.attention_norm(X)) + f(b.mlp_norm(X))


def shared(b, a, f):
    return X + a(b.attention_norm(X)) + f(b.attention_norm(X))


def scaled(b, a, f):
    y = X + 0.25 * a(b.attention_norm(X))
    return y + 0.25 * f(b.mlp_norm(y))


def layer_scaled(b, a, f):
    y = X + b.attention_scale[...][None, None] * a(b.attention_norm(X))
    return y + b.mlp_scale[...][None, None] * f(b.mlp_norm(y))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("equation", "switches"),
    [
        (pre, {}),
        (post, {"norms": "post"}),
        (reordered, {"norms": "reordered"}),
        (sandwich, {"norms": "sandwich"}),
        (parallel, {"parallel": True}),
        (shared, {"parallel": True, "shared_norm": True}),
        (scaled, {"residual_scale": 0.25}),
        (layer_scaled, {"layer_scale": 0.5}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_block_equals_its_equation(equation, switches):
    block = build(**switches)
    found, _, _ = block(X, *REST)
    np.testing.assert_allclose(found, equation(block, *branches(block)), atol=1e-5, rtol=1e-5)
    others = [other for other in (pre, post, reordered) if other is not equation and block.mlp_norm]
    for other in others:  # the equations differ, so that a wrong one would be seen
        assert float(jnp.abs(other(block, *branches(block)) - found).max()) > 1e-2


def attend(config: GroupedAttentionConfig, rope=None):
    block = build(mixer=config)
    angles = None if rope is None else rotation(POSITIONS, rope, config.rope_dim)
    return block.attention, block.attention(X, POSITIONS, angles, *REST[2:])[0]


def heads_of(module, query, key) -> jax.Array:
    """Outputs of all heads, side by side."""
    shapes = (2, 5, 4, 4), (2, 5, 2, 4), (2, 5, 2, 4)
    parts = [y.reshape(shape) for y, shape in zip((query, key, module.value(X)), shapes)]
    return Causal().attend(*parts, POSITIONS, *REST[2:3], ())[0].reshape(2, 5, 16)


def test_output_gate_multiplies_the_heads():
    module, found = attend(dataclasses.replace(ATTENTION, output_gate=True))
    heads = heads_of(module, module.query(X), module.key(X))
    expected = module.out(heads * jax.nn.sigmoid(module.gate(X)))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_width_norm_is_over_all_heads():
    module, found = attend(dataclasses.replace(ATTENTION, width_norm=NormConfig(eps=1e-5)))
    assert (module.query_norm.scale.shape, module.key_norm.scale.shape) == ((16,), (8,))
    query, key = module.query_norm(module.query(X)), module.key_norm(module.key(X))
    expected = module.out(heads_of(module, query, key))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_channels_beyond_the_rotary_ones_do_not_turn():
    partial = dataclasses.replace(ATTENTION, rotary_dim=2)
    module, found = attend(partial, RopeConfig(theta=10.0))
    whole, _ = attend(ATTENTION)
    kernels = {}
    for name in ("query", "key"):
        kernel = getattr(module, name).kernel[...]
        by_head = kernel.reshape(16, -1, 4)
        kernels[name] = by_head.at[..., :2].set(0).reshape(kernel.shape)
        getattr(module, name).kernel[...] = kernels[name]
    angles = rotation(POSITIONS, RopeConfig(theta=10.0), 2)
    still = module(X, POSITIONS, angles, *REST[2:])[0]
    np.testing.assert_allclose(still, module(X, *REST)[0], atol=1e-6)
    assert float(jnp.abs(found - still).max()) > 1e-3
    assert whole.query.kernel.shape == module.query.kernel.shape
