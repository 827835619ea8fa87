"""The gated delta rule: chunks against the definition, documents apart, and transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ShapeError
from ziggurat.kernels import delta_rule as module

delta_rule = jax.jit(module.delta_rule, static_argnames="implementation")


def inputs(t, b=2, k=2, h=4, c=8, z=6, seed=0):
    keys = jax.random.split(jax.random.key(seed), 5)
    q, x = (jax.random.normal(key, (b, t, k, c)) for key in keys[:2])
    q, x = (y / jnp.linalg.norm(y, axis=-1, keepdims=True) for y in (q, x))
    v = jax.random.normal(keys[2], (b, t, h, z))
    decay = -jnp.exp(jax.random.normal(keys[3], (b, t, h)))
    return q, x, v, decay, jax.nn.sigmoid(jax.random.normal(keys[4], (b, t, h)))


@pytest.mark.parametrize("t", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("documents", [False, True])
def test_chunks_are_the_definition(t, documents):
    state = jax.random.normal(jax.random.key(9), (2, 4, 8, 6))
    starts = jax.random.bernoulli(jax.random.key(7), 0.1, (2, t)) if documents else None
    plain = delta_rule(*inputs(t), state, starts, implementation="reference")
    fast = delta_rule(*inputs(t), state, starts, implementation="chunked")
    for a, b in zip(plain, fast):  # sums of float32 in another order
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_gradients_of_chunks_are_those_of_the_definition():
    def loss(arguments, implementation):
        out, state = delta_rule(*arguments, starts=starts, implementation=implementation)
        return (out**2).sum() + (state**3).sum()

    starts = jnp.arange(70)[None].repeat(2, 0) % 23 == 5
    plain = jax.grad(loss)(inputs(70), "reference")
    fast = jax.grad(loss)(inputs(70), "chunked")
    for a, b in zip(plain, fast):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()))


@pytest.mark.slow
def test_documents_in_a_row_are_those_alone():
    whole = inputs(50)
    starts = (jnp.arange(50)[None] == 20).repeat(2, 0)
    out, state = delta_rule(*whole, starts=starts)
    first, _ = delta_rule(*(x[:, :20] for x in whole))
    second, last = delta_rule(*(x[:, 20:] for x in whole))
    np.testing.assert_allclose(out, jnp.concatenate([first, second], 1), atol=1e-5)
    np.testing.assert_allclose(state, last, atol=1e-5)


def test_a_sequence_in_parts_is_the_sequence():
    whole = inputs(30)
    out, state = delta_rule(*whole)
    parts, between = [], None
    for begin, end in ((0, 13), (13, 14), (14, 30)):
        part, between = delta_rule(*(x[:, begin:end] for x in whole), between)
        parts.append(part)
    np.testing.assert_allclose(out, jnp.concatenate(parts, 1), atol=1e-5)
    np.testing.assert_allclose(state, between, atol=1e-5)


def test_strong_decay_gives_no_nan():
    q, k, v, decay, rate = inputs(200)
    out, grads = jax.value_and_grad(lambda g: delta_rule(q, k, v, g, rate)[0].sum())(decay * 1e4)
    assert np.isfinite(out)
    assert np.isfinite(grads).all()


def test_heads_that_do_not_fit_are_refused():
    q, k, v, decay, rate = inputs(3)
    with pytest.raises(ShapeError, match="found 3 value heads; expected a multiple of 2 key heads"):
        delta_rule(q, k, v[:, :, :3], decay[..., :3], rate[..., :3])


@pytest.mark.parity
@pytest.mark.parametrize("t", [1, 5, 130])
def test_equals_transformers(t):
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_5 import modeling_qwen3_5 as oracle

    arguments = inputs(t)
    theirs = [torch.from_numpy(np.array(x)) for x in arguments]
    scale = arguments[0].shape[-1] ** -0.5
    for rule in (oracle.torch_chunk_gated_delta_rule, oracle.torch_recurrent_gated_delta_rule):
        expected, last = rule(*theirs[:3], g=theirs[3], beta=theirs[4], output_final_state=True)
        out, state = delta_rule(arguments[0] * scale, *arguments[1:])
        np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(state, last.numpy(), atol=1e-5)
