"""That shapes are checked while tests run, and what is left alone."""

import inspect

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from tests.shape_checks import has_shape, install
from ziggurat.nn import rope


def test_a_shape_that_is_not_as_annotated_is_an_error():
    x, angles = jnp.ones((1, 4, 2, 8)), jnp.ones((1, 4, 4))
    assert rope.rotate(x, angles, angles).shape == x.shape
    with pytest.raises(TypeCheckError, match="rotate"):
        rope.rotate(x, angles[:, :3], angles)
    with pytest.raises(TypeCheckError, match="rotate"):
        rope.rotate(x[0], angles, angles)


def test_every_function_with_a_shape_is_checked_and_no_other():
    wrapped = set()
    for name, one in vars(rope).items():
        if inspect.isfunction(one) and one.__module__ == rope.__name__:
            shaped = any(map(has_shape, one.__annotations__.values()))
            assert hasattr(one, "__wrapped__") == shaped, name
            wrapped.add(shaped)
    assert wrapped == {True, False}


def test_too_late_is_an_error():
    with pytest.raises(RuntimeError, match="imported already"):
        install()
