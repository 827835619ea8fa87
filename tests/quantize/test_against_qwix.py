"""Our rules and products are Qwix's: the numbers of ``qwix.quantize_model`` on a Flax model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

from ziggurat.kernels.linear import WeightFormat, project, project_rows, take_rows
from ziggurat.quantize import Recipe, Rule
from ziggurat.quantize.weights import quantize, quantize_array

WIDTH, HIDDEN = 128, 256


class Mlp(nnx.Module):
    """A gated MLP of Flax's own layers, which Qwix intercepts."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.silu(self.up(x)))


def ours(params, x):
    return project(nnx.silu(project(x, params["up"]["kernel"])), params["down"]["kernel"])


RULES = {
    "int8, clipped": Rule(module_path=".*", weight="int8", clip=0.9),
    "int8, zero points": Rule(module_path=".*", weight="int8", symmetric=False),
    "w8a8": Rule(module_path=".*", weight="int8", activation="int8"),
    "int4, tiles, zero points": Rule(
        module_path=".*", weight="int4", tile_size=64, symmetric=False
    ),
    "w4a8, tiles": Rule(module_path=".*", weight="int4", activation="int8", tile_size=128),
    "nf4": Rule(module_path=".*", weight="nf4", tile_size=32),
    "fp8": Rule(module_path=".*", weight="fp8_e4m3", activation="fp8_e4m3"),
    "fp8, e5m2": Rule(module_path=".*", weight="fp8_e5m2"),
}
QWIX = {"fp8_e4m3": jnp.float8_e4m3fn, "fp8_e5m2": jnp.float8_e5m2, "nf4": "nf4"}


@pytest.fixture(scope="module")
def model():
    return Mlp(nnx.Rngs(0))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (2, 3, WIDTH))


def as_qwix(rule: Rule) -> qwix.QuantizationRule:
    def kind(name):
        return None if name is None else QWIX.get(name) or getattr(jnp, name)

    method = "absmax" if rule.symmetric else "minmax"
    return qwix.QuantizationRule(
        module_path=rule.module_path,
        weight_qtype=kind(rule.weight),
        act_qtype=kind(rule.activation),
        tile_size=rule.tile_size,
        weight_calibration_method=f"{method},{rule.clip}" if rule.clip != 1.0 else method,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", RULES)
def test_the_same_outputs(case, model, x):
    """But for a last bit of float32: our quantisation is compiled, Qwix's here is not."""
    rule = RULES[case]
    with jax.numpy_dtype_promotion("standard"):  # Qwix (0.1.8) multiplies int32 sums by scales
        theirs = qwix.quantize_model(model, qwix.PtqProvider([as_qwix(rule)]), x)
        expected = theirs(x)
    assert np.abs(expected - model(x)).max() > 1e-4  # it did quantise
    axes = {"up.kernel": -2, "down.kernel": -2}
    done = quantize(nnx.to_pure_dict(nnx.state(model)), Recipe(rules=(rule,)), axes)
    np.testing.assert_allclose(ours(done.params, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", ["int8", "int4", "nf4"])
def test_tables_are_summed_over_their_last_axis(weight):
    """Rows taken and logits are those of the dequantised table; float32 rounding apart."""
    table = jax.random.normal(jax.random.key(2), (7, 32))
    x = jax.random.normal(jax.random.key(3), (2, 32))
    made = quantize_array(table, WeightFormat(weight, tile_size=16), -1)
    assert (made.scale.shape, made.shape) == ((7, 2), (7, 32))
    dense = np.asarray(made.dequantized())
    ids = jnp.array([[6, 0, 6]])
    np.testing.assert_array_equal(take_rows(made, ids), dense[ids])
    np.testing.assert_allclose(project_rows(x, made), x @ dense.T, rtol=1e-5, atol=1e-5)
    assert np.linalg.norm(dense - table) < 0.15 * np.linalg.norm(table)


def test_activations_may_be_scaled_by_token_where_weights_have_tiles(x):
    """As compressed-tensors does; against integers multiplied in numpy. The largest activation of
    each token is 127.5 times a power of two, so that its rounding is no matter of the last bit."""
    kernel = jax.random.normal(jax.random.key(4), (WIDTH, 8))
    made = quantize_array(kernel, WeightFormat("int4", "int8", 32), -2)
    steps = np.clip(40 * np.asarray(x).reshape(-1, WIDTH), -120, 120)
    steps[:, 0] = 127.5
    scale = 2.0 ** np.arange(len(steps), dtype=np.float32)[:, None]
    whole = np.clip(np.round(steps), -128, 127)
    expected = (whole * scale) @ np.asarray(made.dequantized())
    found = np.asarray(project(jnp.asarray(steps * scale), made))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_gradients_reach_activations_through_a_quantised_weight(x):
    """What an adapter beside a frozen quantised base needs (QLoRA)."""
    made = quantize_array(jnp.ones((WIDTH, 4)), WeightFormat("nf4", tile_size=32), -2)
    found = jax.grad(lambda x: project(x, made).sum())(x)
    np.testing.assert_allclose(found, 4.0, rtol=1e-6)
