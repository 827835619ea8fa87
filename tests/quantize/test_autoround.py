"""Learned rounding against SignSGD in numpy, with gradients derived by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from tests.quantize.test_awq import moments

from ziggurat.quantize import Rule
from ziggurat.quantize.autoround import round_matrix
from ziggurat.quantize.grid import Grid
from ziggurat.quantize.rounding import Rounding
from ziggurat.quantize.weights import format_of

LOW, HIGH = -8, 7


CLIP = 0.97  # keeps the largest weights from half way between two integers


def by_the_paper(weight, x, tile, symmetric, steps):
    """Equations 2 to 4 and algorithm 1 of the paper, the loss of the matrix's own outputs. The
    gradient of a rounding is that of its argument."""
    d, f = weight.shape
    tiles = weight.astype(np.float64).reshape(d // tile, tile, f)
    most, least = np.maximum(tiles.max(1), 0)[:, None], np.minimum(tiles.min(1), 0)[:, None]
    if symmetric:
        most, least = np.abs(tiles).max(1)[:, None], 0 * least
    most, least = CLIP * most, CLIP * least
    added, up, down = np.zeros_like(tiles), np.ones_like(most), np.ones_like(least)
    best = (np.inf, weight)
    for step in range(steps + 1):
        each = HIGH + 0.5 if symmetric else HIGH - LOW
        scale = (up * most - down * least) / each
        wanted = 0 * scale if symmetric else np.round(LOW - down * least / scale)
        zero = np.clip(wanted, LOW, HIGH)
        plain = np.round(tiles / scale + zero + added)
        codes = np.clip(plain, LOW, HIGH)
        values = (codes - zero) * scale
        off = (values - tiles).reshape(d, f)
        loss = np.square(x @ off).sum() / len(x)
        if loss < best[0]:
            best = (loss, values.reshape(d, f))
        slope = (2 / len(x) * x.T @ (x @ off)).reshape(tiles.shape)
        inside = (plain >= LOW) & (plain <= HIGH)
        free = (wanted >= LOW) & (wanted <= HIGH) & (not symmetric)
        by_scale = slope * (codes - zero - inside * tiles / scale)
        by_zero = (slope * scale * (inside - 1.0)).sum(1, keepdims=True) * free
        # the zero point moves with the scale and with the lower end
        total = by_scale.sum(1, keepdims=True) + by_zero * down * least / scale**2
        by_up = total * most / each
        by_down = -total * least / each - by_zero * least / scale
        rate = (1 - step / steps) / steps
        added = np.clip(added - rate * np.sign(slope * scale * inside), -0.5, 0.5)
        up = np.clip(up - rate * np.sign(by_up), 0, 1)
        down = np.clip(down - rate * np.sign(by_down), 0, 1)
    return best[1]


@pytest.mark.parametrize("symmetric", [True, False])
def test_is_the_algorithm_of_the_paper(symmetric):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 16)) @ rng.normal(size=(16, 16))
    weight = rng.normal(size=(16, 6)).astype(np.float32)
    rule = Rule(module_path=".*", weight="int4", tile_size=8, symmetric=symmetric, clip=CLIP)
    rounding = Rounding(method="autoround", iterations=200)
    made = np.asarray(round_matrix(jnp.asarray(weight), moments(x), rule, rounding).dequantized())
    expected = by_the_paper(weight, x, 8, symmetric, 200)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    grid = Grid.widest(jnp.asarray(weight), format_of(rule), CLIP)
    plain = np.asarray(grid.decode(grid.encode(jnp.asarray(weight))))
    losses = [np.linalg.norm(x @ (values - weight)) for values in (made, plain)]
    assert losses[0] < 0.95 * losses[1]
