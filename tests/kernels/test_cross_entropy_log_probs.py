"""Per-token log-probabilities of a linear output layer: chunked = reference, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.cross_entropy import linear_cross_entropy, linear_log_probs


@pytest.fixture(autouse=True)
def _chunked(monkeypatch):
    """``auto`` is ``chunked`` here; the C++ kernel has tests of its own."""
    monkeypatch.setattr("ziggurat.kernels.cross_entropy.cpu.serves", lambda *_: False)


def inputs(n=21, d=16, v=50):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (n, d))
    weight = jax.random.normal(keys[1], (v, d))
    return hidden, weight, jax.random.randint(keys[2], (n,), 0, v)


def value_and_grads(arrays, **options):
    """A loss that is no weighted sum of tokens: the sigmoid of a difference of sequences."""

    def loss(hidden, weight):
        log_probs = linear_log_probs(hidden, weight, arrays[2], **options)
        chosen, rejected = log_probs[:10].sum(), log_probs[10:].sum()
        return -jax.nn.log_sigmoid(0.1 * (chosen - rejected)), log_probs

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*arrays[:2])


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize(("chunk", "shards"), [(5, 1), (64, 1), (8, 2)])
def test_chunked_equals_reference(cap, chunk, shards):
    options = {"chunk_tokens": chunk, "logit_softcap": cap}
    expected = value_and_grads(inputs(), implementation="reference", **options)
    got = value_and_grads(inputs(), token_shards=shards, **options)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()),
        got,
        expected,
    )


def test_sum_is_minus_the_cross_entropy():
    hidden, weight, targets = inputs()
    log_probs = linear_log_probs(hidden, weight, targets, chunk_tokens=8)
    out = linear_cross_entropy(hidden, weight, targets, jnp.ones(21), chunk_tokens=8)
    np.testing.assert_allclose(-log_probs.sum(), out.nll, rtol=1e-6)


def test_memory():
    arrays = inputs(n=4096, v=2048)

    def temporaries(implementation):
        def loss(hidden, weight):
            log_probs = linear_log_probs(
                hidden, weight, arrays[2], chunk_tokens=128, implementation=implementation
            )
            return jnp.sum(jnp.exp(log_probs))

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays[:2]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("reference") >= 4096 * 2048 * 4
    assert temporaries("chunked") < 4096 * 2048 * 4 / 8


def test_masked_out_targets():
    """NaN outside the vocabulary, with a finite gradient once it is replaced."""
    hidden, weight, targets = inputs()
    targets = targets.at[3].set(-100)

    def loss(hidden, weight):
        log_probs = linear_log_probs(hidden, weight, targets, chunk_tokens=8)
        return jnp.where(targets >= 0, log_probs, 0.0).sum(), log_probs

    grads, log_probs = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(hidden, weight)
    assert np.flatnonzero(np.isnan(log_probs)).tolist() == [3]
    assert all(np.isfinite(g).all() for g in grads)
    assert (grads[0][3] == 0).all()


def test_sharded_and_frozen_layer():
    arrays = inputs(n=32, v=48)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))

    def loss(hidden, weight, targets):
        return jnp.square(linear_log_probs(hidden, weight, targets, chunk_tokens=8)).sum()

    expected = jax.jit(jax.grad(loss))(*arrays)
    specs = (P("data"), P("model"), P("data"))
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)
    ]
    got = jax.jit(jax.grad(loss))(*placed)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_errors():
    with pytest.raises(ConfigError, match="chunk_tokens: found 0"):
        linear_log_probs(*inputs(), chunk_tokens=0)
    with pytest.raises(ConfigError, match="did you mean reference"):
        linear_log_probs(*inputs(), chunk_tokens=1, implementation="referense")
