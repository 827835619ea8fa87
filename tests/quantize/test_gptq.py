"""GPTQ against the paper's own recursion in numpy, and layer by layer over whole models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.kernels.linear import WeightFormat
from ziggurat.kernels.weight_types import NF4
from ziggurat.quantize.gptq import gptq, inverse_factor
from ziggurat.quantize.grid import Grid
from ziggurat.quantize.rounding import Calibration, Rounding

FORMATS = [
    WeightFormat("int4", tile_size=8, symmetric=False),
    WeightFormat("int8", tile_size=None),
    WeightFormat("nf4", tile_size=8),
]


def nearest(weight, scale, zero, kind):
    """A row's nearest values, in numpy."""
    if kind == "nf4":
        table = np.asarray(NF4)
        return table[np.abs(weight[:, None] / scale[:, None] - table).argmin(1)] * scale
    low, high = (-8, 7) if kind == "int4" else (-128, 127)
    return (np.clip(np.round(weight / scale + zero), low, high) - zero) * scale


def by_the_paper(weight, gram, damping, order, scale, zero, kind):
    """Algorithm of sections 3 and 4 as it is derived: the inverse Hessian loses a row and a column
    by Gaussian elimination after each input, and all inputs left are updated at once."""
    weight, size = weight.astype(np.float64), len(gram)
    inverse = np.linalg.inv(gram + damping * np.diag(gram).mean() * np.eye(size))
    left = list(order)
    found = np.zeros_like(weight)
    while left:
        i, left = left[0], left[1:]
        found[i] = nearest(weight[i], scale[i], zero[i], kind)
        error = (weight[i] - found[i]) / inverse[i, i]
        weight[left] -= np.outer(inverse[left, i], error)
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return found


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.weight)
@pytest.mark.parametrize("ordered", [True, False])
def test_is_the_algorithm_of_the_paper(format, ordered):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 24)) @ rng.normal(size=(24, 24))
    weight = rng.normal(size=(24, 5)).astype(np.float32)
    gram = (x.T @ x).astype(np.float32)
    made = gptq(jnp.asarray(weight), jnp.asarray(gram), format, ordered=ordered)
    each = 24 // format.tiles(24)
    scale = np.repeat(np.asarray(made.scale), each, axis=0)
    zero = np.zeros_like(scale)
    if made.zero_point is not None:
        zero = np.repeat(np.asarray(made.zero_point, np.float32), each, axis=0)
    order = np.argsort(-np.diag(gram)) if ordered else np.arange(24)
    expected = by_the_paper(weight, gram, 0.01, order, scale, zero, format.weight)
    np.testing.assert_allclose(made.dequantized(), expected, atol=1e-5, rtol=0)
    grid = Grid.fit(jnp.asarray(weight), format)
    plain = np.asarray(grid.decode(grid.encode(jnp.asarray(weight))))
    losses = [np.linalg.norm(x @ (w - weight)) for w in (np.asarray(made.dequantized()), plain)]
    assert losses[0] < 0.9 * losses[1]


@pytest.mark.slow
def test_without_inputs_it_rounds_to_nearest():
    """As an expert to which no token was routed."""
    weight = jax.random.normal(jax.random.key(0), (16, 3))
    made = gptq(weight, jnp.zeros((16, 16)), FORMATS[0])
    grid = Grid.fit(weight, FORMATS[0])
    np.testing.assert_array_equal(made.dequantized(), grid.decode(grid.encode(weight)))


def test_inverse_factor():
    x = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32)
    gram = x.T @ x
    upper = np.asarray(inverse_factor(jnp.asarray(gram), 0.01))
    damped = gram + 0.01 * np.diag(gram).mean() * np.eye(9)
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(9), atol=1e-5)
    np.testing.assert_array_equal(upper, np.triu(upper))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int4", "nf4", "fp8_e4m3"])
def test_searched_scales_lose_less_than_those_of_the_largest(kind):
    weight = jax.random.t(jax.random.key(0), 4.0, (64, 8))  # heavy tails
    format = WeightFormat(kind, tile_size=32)
    grid = Grid.fit(weight, format)
    widest = Grid.widest(weight, format)

    def loss(grid):
        return float(jnp.square(grid.decode(grid.encode(weight)) - weight).sum())

    assert loss(grid) < (0.95 if kind != "fp8_e4m3" else 1.0001) * loss(widest)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="damping"):
        Rounding(damping=0.0)
    with pytest.raises(ValueError, match="tokens"):
        Calibration(path="x", tokens=0)
