"""Private names of JAX are where Ziggurat expects them."""

import pytest

from ziggurat.core import jax_private


@pytest.mark.parametrize("name", jax_private.NAMES, ids=lambda name: name.name)
def test_jax_still_has(name):
    name.check()  # fails with a sentence that says what to do
