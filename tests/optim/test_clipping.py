"""Clipping by a global norm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ziggurat.optim import clip_by_norm, global_norm

TREE = {"a": jnp.array([3.0, 0.0]), "b": {"c": jnp.array([[4.0], [12.0]])}}


def clip(tree, bound, **extra):
    transform = clip_by_norm(bound)
    return transform.update(tree, transform.init(tree), **extra)[0]


def test_norm_is_accumulated_in_float32():
    assert global_norm(TREE) == 13
    many = {"x": jnp.full((4096,), 1.0, jnp.bfloat16)}
    assert global_norm(many) == 64
    assert global_norm(many).dtype == jnp.float32
    assert global_norm({}) == 0


@pytest.mark.parametrize("bound", [1.3, 13.0, 100.0])
def test_like_optax(bound):
    expected, _ = optax.clip_by_global_norm(bound).update(TREE, optax.EmptyState())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), clip(TREE, bound), expected
    )


def test_a_given_norm_is_used():
    got = clip(TREE, 1.0, grad_norm=jnp.asarray(26.0))
    np.testing.assert_allclose(got["a"], [3 / 26, 0], rtol=1e-6)


def test_given_norm_leaves_no_second_reduction():
    transform = clip_by_norm(1.0)

    def reductions(norm):
        jaxpr = jax.make_jaxpr(
            lambda g, n: transform.update(g, optax.EmptyState(), grad_norm=n)[0]
        )(TREE, norm)
        return str(jaxpr).count("reduce_sum")

    assert reductions(jnp.asarray(2.0)) == 0
    assert reductions(None) == 2


def test_zero_nan_and_no_clipping():
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    jax.tree.map(np.testing.assert_array_equal, clip(zeros, 1.0), zeros)
    assert np.isnan(clip({"a": jnp.array([1.0, jnp.nan])}, 1.0)["a"]).all()
    assert clip(TREE, float("inf")) is TREE


def test_dtype_is_kept():
    assert clip({"a": jnp.full((4,), 9.0, jnp.bfloat16)}, 1.0)["a"].dtype == jnp.bfloat16
