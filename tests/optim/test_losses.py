"""The next-token loss: definition, masks, accumulation, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core import config as core_config
from ziggurat.core.errors import ConfigError, ShapeError
from ziggurat.optim import LossConfig, LossMetrics, next_token_loss


def batch(b=3, t=10, d=8, v=20):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (b, t, d))
    head = jax.random.normal(keys[1], (v, d))
    targets = jax.random.randint(keys[2], (b, t), 0, v)
    mask = (jax.random.uniform(keys[3], (b, t)) < 0.7).astype(jnp.float32)
    return hidden, head, targets, mask


@pytest.mark.parametrize("implementation", ["auto", "reference", "chunked"])
def test_definition(implementation):
    hidden, head, targets, mask = batch()
    config = LossConfig(z_loss=0.01, chunk_tokens=7, implementation=implementation)
    run = jax.jit(lambda *a: next_token_loss(*a, config, logit_softcap=5.0))
    loss, metrics = run(hidden, head, targets, mask)
    logits = 5 * np.tanh(np.einsum("btd,vd->btv", hidden, head).astype(np.float64) / 5)
    z = np.log(np.exp(logits).sum(-1))
    picked = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    nll, z_loss = (mask * (z - picked)).sum(), (mask * 0.01 * z**2).sum()
    np.testing.assert_allclose(metrics.nll, nll, rtol=1e-5)
    np.testing.assert_allclose(metrics.z_loss, z_loss, rtol=1e-5)
    np.testing.assert_allclose(loss, nll + z_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.log_normalizer, (mask * z).sum(), rtol=1e-5)
    assert metrics.tokens == mask.sum()
    assert (
        int(metrics.correct)
        == (np.asarray(mask) * (logits.argmax(-1) == np.asarray(targets))).sum()
    )


def test_accumulated_equals_whole_with_unequal_masks():
    hidden, head, targets, mask = batch(b=4)
    mask = mask.at[0].set(0.0)
    config = LossConfig(chunk_tokens=16)

    def loss(head, *part):
        return next_token_loss(part[0], head, *part[1:], config)

    def accumulate(head):
        def micro(carry, part):
            out, grad = jax.value_and_grad(loss, has_aux=True)(head, *part)
            return jax.tree.map(jnp.add, carry, (out, grad)), None

        zero = LossMetrics(*(jnp.zeros(()) for _ in range(4)), correct=jnp.zeros((), jnp.int32))
        parts = tuple(x.reshape(2, 2, *x.shape[1:]) for x in (hidden, targets, mask))
        start = ((jnp.zeros(()), zero), jnp.zeros_like(head))
        ((total, metrics), grad), _ = jax.lax.scan(micro, start, parts)
        return total / metrics.tokens, grad / metrics.tokens

    (total, metrics), grad = jax.value_and_grad(loss, has_aux=True)(head, hidden, targets, mask)
    got, got_grad = jax.jit(accumulate)(head)
    np.testing.assert_allclose(got, total / metrics.tokens, rtol=1e-6)
    np.testing.assert_allclose(got_grad, grad / metrics.tokens, rtol=1e-5, atol=1e-7)


def test_masked_tokens_have_no_influence():
    hidden, head, targets, mask = batch()
    run = jax.grad(lambda h: next_token_loss(h, head, targets, mask, LossConfig())[0])
    gradient = run(hidden)
    assert (np.asarray(gradient)[np.asarray(mask) == 0] == 0).all()
    assert (np.abs(gradient).sum(-1)[np.asarray(mask) > 0] > 0).all()


def test_compute_dtype_and_token_shards_reach_the_kernel():
    hidden, head, targets, mask = batch()
    args = (hidden, head, targets, mask, LossConfig(chunk_tokens=8))
    exact, narrow = (
        next_token_loss(*args)[0],
        next_token_loss(*args, compute_dtype=jnp.bfloat16)[0],
    )
    assert exact != narrow
    np.testing.assert_allclose(narrow, exact, rtol=1e-2)
    np.testing.assert_allclose(next_token_loss(*args, token_shards=3)[0], exact, rtol=1e-6)


def test_errors():
    hidden, head, targets, mask = batch()
    with pytest.raises(ConfigError, match="did you mean chunked"):
        next_token_loss(hidden, head, targets, mask, LossConfig(implementation="chunkd"))
    unchecked = next_token_loss.__wrapped__
    with pytest.raises(
        ShapeError, match=r"targets \[3, 9\], loss_mask \[3, 10\]; expected \[3, 10\]"
    ):
        unchecked(hidden, head, targets[:, 1:], mask, LossConfig())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("z_loss=-1.0", "loss.z_loss: found -1.0"),
        ("chunk_tokens=0", "loss.chunk_tokens: found 0"),
        ("logit_softcap=3.0", "loss.logit_softcap: unknown key"),
        ("chunk=5", "loss.chunk: unknown key"),
    ],
)
def test_errors_in_a_run_file(text, part):
    @core_config.node
    class Run:
        loss: LossConfig

    with pytest.raises(ConfigError, match=part):
        core_config.parse(Run, f"[loss]\n{text}")
