"""Projections: every form is the same product, with the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.linear import IMPLEMENTATIONS, project


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 5)], ids=str)
@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
def test_every_form_is_the_product(implementation, leading):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(*leading, 6)), rng.normal(size=(6, 4))
    dy = rng.normal(size=(*leading, 4))

    def loss(x, w):
        return (project(x, w, implementation=implementation) * jnp.asarray(dy, "float32")).sum()

    args = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    out = project(*args, implementation=implementation)
    assert out.shape == (*leading, 4)
    np.testing.assert_allclose(out, x @ w, atol=1e-5)
    dx, dw = jax.grad(loss, argnums=(0, 1))(*args)
    np.testing.assert_allclose(dx, dy @ w.T, atol=1e-5)
    np.testing.assert_allclose(dw, x.reshape(-1, 6).T @ dy.reshape(-1, 4), atol=1e-5)


@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
def test_bfloat16_accumulates_in_float32(implementation):
    """A thousand ones: bfloat16 sums would stop at 256."""
    x = jnp.ones((2, 3, 1000), jnp.bfloat16)
    out = project(x, jnp.ones((1000, 2), jnp.bfloat16), implementation=implementation)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1000.0, rtol=2**-8)


def test_unknown_implementation():
    with pytest.raises(ConfigError, match="found 'flatt'.*did you mean flat"):
        project(jnp.ones((1, 2)), jnp.ones((2, 1)), implementation="flatt")
