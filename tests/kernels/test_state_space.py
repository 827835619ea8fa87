"""The state-space recurrence: chunks against the definition, documents apart, and transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ShapeError
from ziggurat.kernels import state_space as module

CLOSE = 1e-4
"""Outputs are sums of some hundred products of size ten, in float32 and in another order."""
state_space = jax.jit(module.state_space, static_argnames="implementation")


def inputs(t, b=2, g=2, h=4, c=8, z=6, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    q, k = (jax.random.normal(key, (b, t, g, c)) for key in keys[:2])
    v = jax.random.normal(keys[2], (b, t, h, z))
    return q, k, v, -jnp.exp(jax.random.normal(keys[3], (b, t, h)))


@pytest.mark.parametrize("t", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("documents", [False, True])
def test_chunks_are_the_definition(t, documents):
    state = jax.random.normal(jax.random.key(9), (2, 4, 8, 6))
    starts = jax.random.bernoulli(jax.random.key(7), 0.1, (2, t)) if documents else None
    plain = state_space(*inputs(t), state, starts, implementation="reference")
    fast = state_space(*inputs(t), state, starts, implementation="chunked")
    for a, b in zip(plain, fast):
        np.testing.assert_allclose(a, b, atol=CLOSE)


def test_gradients_of_chunks_are_those_of_the_definition():
    def loss(arguments, implementation):
        out, state = state_space(*arguments, starts=starts, implementation=implementation)
        return (out**2).sum() + (state**3).sum()

    starts = jnp.arange(70)[None].repeat(2, 0) % 23 == 5
    plain = jax.grad(loss)(inputs(70), "reference")
    fast = jax.grad(loss)(inputs(70), "chunked")
    for a, b in zip(plain, fast):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_documents_in_a_row_are_those_alone(implementation):
    whole, how = inputs(50), {"implementation": implementation}
    starts = (jnp.arange(50)[None] == 20).repeat(2, 0)
    out, state = state_space(*whole, starts=starts, **how)
    first, _ = state_space(*(x[:, :20] for x in whole), **how)
    second, last = state_space(*(x[:, 20:] for x in whole), **how)
    np.testing.assert_allclose(out, jnp.concatenate([first, second], 1), atol=CLOSE)
    np.testing.assert_allclose(state, last, atol=CLOSE)


def test_a_sequence_in_parts_is_the_sequence():
    whole = inputs(30)
    out, state = state_space(*whole)
    parts, between = [], None
    for begin, end in ((0, 13), (13, 14), (14, 30)):
        part, between = state_space(*(x[:, begin:end] for x in whole), between)
        parts.append(part)
    np.testing.assert_allclose(out, jnp.concatenate(parts, 1), atol=CLOSE)
    np.testing.assert_allclose(state, between, atol=CLOSE)


def test_strong_decay_gives_no_nan():
    q, k, v, decay = inputs(200)
    out, grads = jax.value_and_grad(lambda g: state_space(q, k, v, g)[0].sum())(decay * 1e4)
    assert np.isfinite(out)
    assert np.isfinite(grads).all()


def test_heads_that_do_not_fit_are_refused():
    q, k, v, decay = inputs(3)
    with pytest.raises(ShapeError, match="found 3 heads; expected a multiple of 2 groups"):
        state_space(q, k, v[:, :, :3], decay[..., :3])


@pytest.mark.parity
@pytest.mark.parametrize("t", [5, 130])
def test_equals_transformers(t):
    torch = pytest.importorskip("torch")
    from transformers.models.mamba2 import modeling_mamba2 as oracle

    q, k, v, decay = inputs(t)
    step = jax.nn.softplus(jax.random.normal(jax.random.key(3), decay.shape))
    rates = -jnp.arange(1.0, 5.0)
    x, dt, a, b, c = (torch.from_numpy(np.array(y)) for y in (v, step, rates, k, q))
    expected, last = oracle.mamba2_chunk_scan(x, dt, a, b, c, 32, return_final_states=True)
    out, state = state_space(q, k, v * step[..., None], step * rates[None, None])
    np.testing.assert_allclose(out, expected.numpy(), atol=CLOSE)
    np.testing.assert_allclose(state.swapaxes(2, 3), last.numpy(), atol=CLOSE)
