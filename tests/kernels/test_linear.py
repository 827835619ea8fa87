"""Projections: every form is the same product, with the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.linear import IMPLEMENTATIONS, project

CPP = {"cpu", "stored"}  # see test_cpu_products.py and linear/test_stored.py
FORMS = [name for name in IMPLEMENTATIONS if name not in CPP]


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 5)], ids=str)
@pytest.mark.parametrize("implementation", FORMS)
def test_every_form_is_the_product(implementation, leading):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(*leading, 6)), rng.normal(size=(6, 4))
    dy = rng.normal(size=(*leading, 4))

    def loss(x, w):
        out = project(x, w, implementation=implementation)
        return (out * jnp.asarray(dy, "float32")).sum(), out

    args = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    (dx, dw), out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*args)
    assert out.shape == (*leading, 4)
    np.testing.assert_allclose(out, x @ w, atol=1e-5)
    np.testing.assert_allclose(dx, dy @ w.T, atol=1e-5)
    np.testing.assert_allclose(dw, x.reshape(-1, 6).T @ dy.reshape(-1, 4), atol=1e-5)


@pytest.mark.parametrize("implementation", FORMS)
def test_bfloat16_accumulates_in_float32(implementation):
    """A thousand ones: bfloat16 sums would stop at 256."""
    x = jnp.ones((2, 3, 1000), jnp.bfloat16)
    out = project(x, jnp.ones((1000, 2), jnp.bfloat16), implementation=implementation)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1000.0, rtol=2**-8)


def test_unknown_implementation():
    with pytest.raises(ConfigError, match=r"found 'flatt'.*did you mean flat"):
        project(jnp.ones((1, 2)), jnp.ones((2, 1)), implementation="flatt")
