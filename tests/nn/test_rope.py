"""Rotary positions: each scaling against its formula, and what rotation must preserve."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.nn import RopeConfig
from ziggurat.nn.rope import (
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
    frequencies,
    rotate,
    rotation,
)

THETA, DIM = 10000.0, 16
PLAIN = THETA ** (-np.arange(0, DIM, 2) / DIM)


def scaled(scaling) -> np.ndarray:
    omega, _ = frequencies(RopeConfig(theta=THETA, scaling=scaling), DIM)
    return omega


def test_plain_by_hand():
    omega, factor = frequencies(RopeConfig(theta=16.0), 8)
    np.testing.assert_allclose(omega, [1, 0.5, 0.25, 0.125], rtol=1e-6)
    assert (factor, omega.dtype) == (1.0, np.float32)


def test_linear_divides_all():
    np.testing.assert_allclose(scaled(LinearScaling(factor=4.0)), PLAIN / 4, rtol=1e-6)


def test_llama3_by_parts():
    """Wavelengths 2 pi / omega: below 64 / 4 kept, above 64 / 1 divided, interpolated between."""
    omega = scaled(Llama3Scaling(factor=8.0, original_length=64))
    for plain, found in zip(PLAIN, omega):
        wavelength = 2 * math.pi / plain
        share = (64 / wavelength - 1) / (4 - 1)
        expected = plain * (1 if wavelength < 16 else 1 / 8)
        if 16 <= wavelength <= 64:
            expected = plain * ((1 - share) / 8 + share)
        assert found == pytest.approx(expected, rel=1e-5)
    kinds = [(found == pytest.approx(plain), plain / found) for plain, found in zip(PLAIN, omega)]
    assert kinds[0][0]
    assert kinds[-1][1] == pytest.approx(8.0)
    assert any(1.01 < ratio < 7.99 for _, ratio in kinds), "no wavelength lies between"


def test_yarn_by_parts():
    """Dimensions that turn over 32 times in the original context are kept, under once divided."""
    omega = scaled(YarnScaling(factor=4.0, original_length=512))
    turns = 512 * PLAIN / (2 * math.pi)
    low = math.floor(DIM * math.log(512 / (32 * 2 * math.pi)) / (2 * math.log(THETA)))
    high = math.ceil(DIM * math.log(512 / (1 * 2 * math.pi)) / (2 * math.log(THETA)))
    for index, (plain, found) in enumerate(zip(PLAIN, omega)):
        ramp = min(max((index - low) / (high - low), 0), 1)
        assert found == pytest.approx(plain / 4 * ramp + plain * (1 - ramp), rel=1e-5)
    assert omega[turns > 32] == pytest.approx(PLAIN[turns > 32])
    assert omega[turns < 0.4] == pytest.approx(PLAIN[turns < 0.4] / 4)


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        (YarnScaling(factor=4.0, original_length=64), 0.1 * math.log(4) + 1),
        (YarnScaling(factor=1.0, original_length=64), 1.0),
        (YarnScaling(factor=4.0, original_length=64, attention_factor=1.25), 1.25),
        (
            YarnScaling(factor=4.0, original_length=64, mscale=0.5, mscale_all_dim=2.0),
            (0.05 * math.log(4) + 1) / (0.2 * math.log(4) + 1),
        ),
    ],
)
def test_yarn_attention_factor_multiplies_cosines(scaling, factor):
    rope = RopeConfig(theta=THETA, scaling=scaling)
    assert frequencies(rope, DIM)[1] == pytest.approx(factor)
    cos, sin = rotation(jnp.array([[0, 7]]), rope, DIM)
    np.testing.assert_allclose(cos[0, 0], factor, rtol=1e-6)
    np.testing.assert_allclose(cos**2 + sin**2, factor**2, rtol=1e-5)


def test_truncation_rounds_the_corners_outward():
    whole, exact = (
        scaled(YarnScaling(factor=4.0, original_length=512, truncate=truncate))
        for truncate in (True, False)
    )
    assert not np.allclose(whole, exact, rtol=1e-3)


def test_rotation_by_hand():
    """Channel i turns with channel i + c/2, by the position in radians at the first frequency."""
    x = jnp.zeros((1, 2, 1, 4)).at[..., 0].set(1.0)
    out = rotate(x, *rotation(jnp.array([[0, 2]]), RopeConfig(theta=100.0), 4))
    np.testing.assert_allclose(out[0, 0, 0], [1, 0, 0, 0])
    np.testing.assert_allclose(out[0, 1, 0], [math.cos(2), 0, math.sin(2), 0], atol=1e-6)


def test_products_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, DIM)), jnp.float32) for _ in range(2))

    def product(at, other):
        rope = RopeConfig(theta=THETA)
        turned = [
            rotate(x, *rotation(jnp.array([[p]]), rope, DIM))
            for x, p in ((query, at), (key, other))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(3, 1) == pytest.approx(product(52, 50), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(4, 1), abs=1e-2)
    turned = rotate(query, *rotation(jnp.array([[9]]), RopeConfig(), DIM))
    assert float(jnp.linalg.norm(turned)) == pytest.approx(float(jnp.linalg.norm(query)), rel=1e-5)


def test_angles_stay_in_float32_for_bfloat16_activations():
    x = jnp.ones((1, 1, 1, DIM), jnp.bfloat16)
    cos, sin = rotation(jnp.array([[4095]]), RopeConfig(), DIM)
    assert (cos.dtype, rotate(x, cos, sin).dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(cos[0, 0, 0], math.cos(4095), atol=1e-3)
