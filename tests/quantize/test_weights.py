"""Quantising parameter trees: stacks, experts, sizes, and models that continue working."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat import mesh
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.core.pytrees import size_bytes
from ziggurat.data.tokenizers import byte_level
from ziggurat.kernels.cpu.library import available
from ziggurat.kernels.linear import PackedWeight, WeightFormat, dense
from ziggurat.mesh import MeshConfig
from ziggurat.models import LanguageModel, LlamaConfig, unstacked
from ziggurat.models.quantized import dequantized, quantized, summed_axes
from ziggurat.models.unstacked import Unstacked
from ziggurat.nn import Causal
from ziggurat.quantize import NAMED, Recipe, Rule, evaluation
from ziggurat.quantize.report import make_report, summary, write_page
from ziggurat.quantize.weights import quantize, quantize_array

TOKENS = jnp.arange(32).reshape(2, 16) * 7 % 96


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=96, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=96, init_std=0.1
    )
    return LanguageModel.build(config)


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def done(model, params):
    return quantize(params, NAMED["int4"], summed_axes(model))


@pytest.fixture(scope="module")
def logits(model, done):
    return np.asarray(jax.jit(model.logits)(done.params, TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["int4", "fp8_e4m3"])
def test_a_stack_of_experts_is_each_alone(weight):
    """``[l, e, d, f]``; an index takes an expert, as a grouped product needs."""
    stack = jax.random.normal(jax.random.key(1), (2, 3, 32, 8))
    rule = Rule(module_path=".*", weight=weight, tile_size=16)
    tree = {"blocks": {"mlp": {"experts": {"up": stack}}}}
    found = quantize(tree, Recipe(rules=(rule,)), {"blocks.mlp.experts.up": -2})
    made = found.params["blocks"]["mlp"]["experts"]["up"]
    alone = quantize_array(stack[1, 2], WeightFormat(weight, tile_size=16), -2)
    np.testing.assert_array_equal(dense(made[1][2]), alone.dequantized())
    assert [error.layer for error in found.errors] == [0, 1, 2, 3, 4, 5]
    off = np.linalg.norm(stack[1, 2] - alone.dequantized()) / np.linalg.norm(stack[1, 2])
    assert found.errors[5].relative_error == pytest.approx(off, rel=1e-5)


def test_four_bits_are_four_bits(model, params, done):
    """A half byte for each weight, a scale (4 bytes) and a zero point (1) for each tile of 32."""
    up = done.params["blocks"]["mlp"]["up"]["kernel"]
    weights = 2 * 64 * 96
    assert up.size == weights
    assert up.nbytes == weights // 2 + 5 * weights // 32
    assert sum(part.nbytes for part in jax.tree.leaves(up)) == up.nbytes
    small = quantized(model, done.formats)
    assert small.parameter_count == model.parameter_count
    assert small.matmul_parameter_count == model.matmul_parameter_count
    assert size_bytes(small.abstract) == size_bytes(done.params) < size_bytes(params) / 5


def test_the_logits_are_those_of_the_dequantised_model(model, done, logits):
    plain = jax.jit(model.logits)(dequantized(done.params), TOKENS)
    # a kernel that multiplies weights as stored sums in another order
    np.testing.assert_allclose(logits, plain, atol=1e-5, rtol=0)


def is_packed(node):
    return isinstance(node, PackedWeight)


class Stateless:
    """What layers keep where the context keeps nothing."""

    def of(self, layer):
        return ()

    def after(self, layer, state):
        return self


@pytest.mark.parametrize("pack", [False, True])
def test_layers_apart_as_in_serving(model, done, logits, pack):
    def forward(weights, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = unstacked.hidden(model, weights, tokens, positions, Causal(), Stateless())
        return unstacked.project(model, weights, hidden)

    params = jax.tree.map(np.asarray, done.params) if pack else done.params
    weights = jax.tree.map(jnp.asarray, Unstacked.of(model, params, pack=pack))
    packed = any(map(is_packed, jax.tree.leaves(weights, is_leaf=is_packed)))
    assert packed == (pack and available("project"))
    found = jax.jit(forward)(weights, TOKENS)
    np.testing.assert_allclose(found, logits, atol=1e-5, rtol=1e-5)


def test_sharded_as_on_one_device(model, done, logits):
    layout = mesh.build(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    small = quantized(model, done.formats)
    shardings = small.shardings(layout)
    placed = jax.device_put(done.params, shardings)
    up = placed["blocks"]["mlp"]["up"]["kernel"]
    assert up.qvalue.addressable_shards[0].data.size == up.qvalue.size // 4
    with layout.active():
        found = jax.jit(model.logits)(placed, TOKENS)
    np.testing.assert_allclose(found, logits, atol=1e-4, rtol=1e-4)


def test_tiles_that_do_not_divide_are_refused_with_the_nearest(model, params):
    recipe = Recipe(rules=(Rule(module_path="blocks/mlp/.*", weight="int4", tile_size=40),))
    with pytest.raises(ConfigError, match=r"down of 96 inputs: .*tile_size 40.*use tile_size = 32"):
        quantize(params, recipe, summed_axes(model))


def test_twice_is_refused(model, done):
    with pytest.raises(ConfigError, match="found int4 already"):
        quantize(done.params, NAMED["int8"], summed_axes(quantized(model, done.formats)))


def test_windows(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    files[0].write_text("x" * 25)
    files[1].write_text("y" * 25)
    rows = evaluation.windows(files, byte_level(), tokens=30, length=9, vocab_size=257)
    with pytest.raises(DataError, match="vocabulary"):
        evaluation.windows(files, byte_level(), tokens=30, length=9, vocab_size=64)
    assert rows.shape == (4, 10)
    with pytest.raises(DataError, match="found 50 tokens; expected over 60"):
        evaluation.windows(files, byte_level(), tokens=30, length=60, vocab_size=257)
    with pytest.raises(DataError, match="No such file"):
        evaluation.windows([tmp_path / "c"], byte_level(), tokens=30, length=9, vocab_size=257)


def test_compare_and_the_page(params, done, tmp_path):
    """Against the definition in numpy, on a model that is a table of logits."""
    rows = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    tables = [np.random.default_rng(seed).normal(size=(4, 4)) for seed in (0, 1)]
    found = evaluation.compare(lambda table, tokens: table[tokens], *map(jnp.asarray, tables), rows)
    logs = [np.log(np.exp(t) / np.exp(t).sum(-1, keepdims=True))[rows[:, :-1]] for t in tables]
    targets = rows[:, 1:, None]
    losses = [-np.take_along_axis(log, targets, -1).mean() for log in logs]
    assert found.tokens == 6
    assert [found.perplexity_before, found.perplexity_after] == pytest.approx(np.exp(losses), 1e-5)
    assert found.agreement == np.mean(logs[0].argmax(-1) == logs[1].argmax(-1))
    p, q = logs
    assert found.kl_divergence == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-4)
    report = make_report("<tiny>", "int4", params, done, found, "a text")
    assert sum(row.bytes_after for row in report.weights) == report.bytes_after
    text = write_page(tmp_path / "report.html", report).read_text()
    assert "&lt;tiny&gt;" in text
    assert "blocks/mlp/up" in text
    assert dict(summary(report))["measured on"] == "6 tokens of a text"
    assert "http" not in text.replace("http-equiv", "")
