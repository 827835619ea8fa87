"""Norm, feed-forward block, linear layer and embedding against their equations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ziggurat.nn import Embedding, GatedMLP, GatedMlpConfig, LayerNorm, Linear, Precision, RMSNorm
from ziggurat.nn.mlp import ACTIVATIONS

F32, BF16 = Precision(), Precision(compute="bfloat16")


def forward(module: nnx.Module, x):
    graph, state = nnx.split(module)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make(kind, *args, **kwargs):
    return kind(*args, **kwargs, std=0.5, precision=F32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)], ids=str)
def test_rms_norm_equation(shape):
    norm = RMSNorm(4, eps=1e-2, precision=F32)
    norm.scale[...] = jnp.arange(4.0) + 1
    x = draw(*shape) * 3
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-2) * (np.arange(4) + 1)
    np.testing.assert_allclose(forward(norm, jnp.asarray(x)), expected, rtol=1e-5)


def test_rms_norm_by_hand():
    norm = RMSNorm(2, eps=0.0, precision=F32)
    np.testing.assert_allclose(forward(norm, jnp.array([3.0, 4.0])), [0.6 * 2**0.5, 0.8 * 2**0.5])


def test_rms_norm_takes_its_statistics_in_float32():
    """A sum of 4096 squares of 16: bfloat16 would stop growing at 2**16."""
    out = forward(RMSNorm(4096, eps=1e-6, precision=BF16), jnp.full((1, 4096), 16.0, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), 1.0)


def test_rms_norm_around_zero():
    """Gemma's: the stored scale is what one is added to."""
    norm = RMSNorm(2, eps=0.0, precision=F32, offset=1.0)
    x = jnp.array([3.0, 4.0])
    np.testing.assert_array_equal(norm.scale[...], 0.0)
    np.testing.assert_allclose(forward(norm, x), [0.6 * 2**0.5, 0.8 * 2**0.5], rtol=1e-6)
    norm.scale[...] = jnp.ones(2)
    np.testing.assert_allclose(forward(norm, x), [1.2 * 2**0.5, 1.6 * 2**0.5], rtol=1e-6)


def test_layer_norm_equation():
    norm = LayerNorm(4, eps=1e-2, precision=F32)
    norm.scale[...], norm.bias[...] = jnp.arange(4.0) + 1, jnp.arange(4.0)
    x = draw(2, 3, 4) * 3 + 5
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-2)
    expected = expected * (np.arange(4) + 1) + np.arange(4)
    np.testing.assert_allclose(forward(norm, jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gated_mlp_equation(activation, bias):
    c = GatedMlpConfig(hidden=10, activation=activation, bias=bias)
    mlp = make(GatedMLP, 6, c)
    if bias:
        for index, layer in enumerate((mlp.gate, mlp.up, mlp.down)):
            assert layer.bias is not None
            layer.bias[...] = jnp.asarray(draw(*layer.bias.shape, seed=index))
    x = draw(1, 2, 6, seed=9)

    def affine(layer, x):
        return x @ np.asarray(layer.kernel[...]) + (np.asarray(layer.bias[...]) if bias else 0)

    def phi(z):
        return 0.5 * (1 + np.vectorize(math.erf)(z / 2**0.5))

    sigma = {
        "silu": lambda z: z / (1 + np.exp(-z)),
        "gelu": lambda z: z * phi(z),
        "gelu_tanh": lambda z: z / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3))),
        "quick_gelu": lambda z: z / (1 + np.exp(-1.702 * z)),
        "relu": lambda z: np.maximum(z, 0),
        "relu2": lambda z: np.maximum(z, 0) ** 2,
        "tanh": np.tanh,
    }[activation]
    expected = affine(mlp.down, sigma(affine(mlp.gate, x)) * affine(mlp.up, x))
    out, routing = forward(mlp, jnp.asarray(x))
    assert routing is None
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias):
    layer = make(Linear, 3, 5, ("embed", "mlp"), bias=bias)
    assert (layer.bias is not None) == bias
    if layer.bias is not None:
        layer.bias[...] = jnp.arange(5.0)
    x = draw(2, 4, 3)
    expected = x @ np.asarray(layer.kernel[...]) + (np.arange(5.0) if bias else 0)
    np.testing.assert_allclose(forward(layer, jnp.asarray(x)), expected, atol=1e-6)
    assert layer.kernel.get_metadata("axes") == ("embed", "mlp")
    if layer.bias is not None:
        assert layer.bias.get_metadata("axes") == ("mlp",)


def test_embedding_looks_up_and_casts():
    table = Embedding(7, 4, std=1.0, precision=BF16, rngs=nnx.Rngs(0))
    ids = jnp.array([[0, 6, 3]])
    out = forward(table, ids)
    assert out.dtype == jnp.bfloat16
    assert table.table[...].dtype == jnp.float32
    np.testing.assert_array_equal(out, table.table[...][ids].astype(jnp.bfloat16))


def test_an_id_outside_the_vocabulary_is_loud():
    """It gives NaN rather than some other token's vector."""
    table = make(Embedding, 7, 4)
    assert jnp.isnan(forward(table, jnp.array([[7]]))).all()


def test_parameters_are_stored_in_their_type():
    half = Precision(param="bfloat16", compute="float32")
    layer = Linear(2, 2, ("embed", "mlp"), bias=True, std=1.0, precision=half, rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype("bfloat16")}
    assert forward(layer, jnp.ones((1, 2))).dtype == jnp.float32
