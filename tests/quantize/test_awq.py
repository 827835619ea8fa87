"""AWQ and SmoothQuant against the papers' own formulas in numpy, and folded into whole layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.train.tiny_families import families

from ziggurat.core.errors import ConfigError
from ziggurat.core.pytrees import named_leaves
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.layer_by_layer import LayerByLayer, Moments
from ziggurat.models.quantized import summed_axes
from ziggurat.nn.decoder import stack_name
from ziggurat.quantize import NAMED, Recipe, Rule, awq, smoothquant
from ziggurat.quantize.calibrated import quantize_calibrated
from ziggurat.quantize.folding import fold_layer
from ziggurat.quantize.rounding import Rounding
from ziggurat.quantize.weights import quantize

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 16)) * np.exp(RNG.normal(size=16) * 1.5)
WEIGHTS = [RNG.normal(size=(16, f)).astype(np.float32) for f in (6, 4)]
MATRICES = [jnp.asarray(weight) for weight in WEIGHTS]
ROWS = RNG.integers(0, 48, (8, 24))


def moments(x):
    size = np.abs(x)
    gram, *parts = (part.astype(np.float32) for part in (x.T @ x, size.sum(0), size.max(0)))
    return Moments(gram, parts[0], parts[1], np.asarray(len(x)))


def integers(weight, tile, share=1.0, bits=4):
    """``pseudo_quantize_tensor`` of the paper's code: zero points, tiles of inputs."""
    n, (d, f) = 2**bits - 1, weight.shape
    tiles = weight.reshape(d // tile, tile, f)
    most, least = (np.maximum(tiles.max(1), 0), np.minimum(tiles.min(1), 0))
    scale = ((share * most - share * least) / n)[:, None]
    zero = np.round(-share * least[:, None] / scale)
    return ((np.clip(np.round(tiles / scale) + zero, 0, n) - zero) * scale).reshape(d, f)


def test_awq_factors_are_those_of_the_paper():
    """Its loop over ratios, on the activations themselves."""
    rules = [Rule(module_path=".*", weight="int4", tile_size=8, symmetric=False)] * 2
    mean, losses, tried = np.abs(X).mean(0), [], []
    for ratio in np.arange(20) / 20:
        scale = np.maximum(mean**ratio, 1e-4)
        scale = scale / np.sqrt(scale.max() * scale.min())
        tried.append(scale)
        losses.append(
            sum(
                np.square((X / scale) @ integers(w * scale[:, None], 8) - X @ w).sum()
                for w in WEIGHTS
            )
        )
    found = awq.factors(MATRICES, moments(X), rules, Rounding(method="awq"))
    best = int(np.argmin(losses))
    assert best > 0, losses
    np.testing.assert_allclose(found, tried[best], rtol=1e-4)


def test_awq_clips_for_the_least_error_weighted_by_the_inputs():
    rule = Rule(module_path=".*", weight="int4", tile_size=8, symmetric=False)
    made = awq.round_matrix(MATRICES[0], moments(X), rule, Rounding(method="awq"))
    by_input = np.square(X).sum(0)[:, None]
    shares = np.linspace(1, 0.4, 49)
    values = np.stack([integers(WEIGHTS[0].astype(np.float64), 8, share) for share in shares])
    off = (by_input * np.square(values - WEIGHTS[0])).reshape(49, 2, 8, 6).sum(2)
    best = off.argmin(0)[None, :, None]
    tiles = np.take_along_axis(values.reshape(49, 2, 8, 6), np.broadcast_to(best, (1, 2, 8, 6)), 0)
    np.testing.assert_allclose(made.dequantized(), tiles.reshape(16, 6), atol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_smoothquant_factors_are_those_of_the_paper(share):
    by_input = np.maximum(np.abs(WEIGHTS[0]).max(1), np.abs(WEIGHTS[1]).max(1))
    expected = np.abs(X).max(0) ** share / by_input ** (1 - share)
    rules = [Rule(module_path=".*", weight="int8", activation="int8")] * 2
    rounding = Rounding(method="smoothquant", smoothing=share)
    found = smoothquant.factors(MATRICES, moments(X), rules, rounding)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    made = smoothquant.round_matrix(MATRICES[0], moments(X), rules[0], rounding)
    scale = np.abs(WEIGHTS[0]).max(0) / 127.5
    ratio = WEIGHTS[0] / scale
    nearest = np.clip(np.round(ratio), -128, 127) * scale
    sure = np.abs(ratio) < 127.4  # the largest lies half way between two integers
    np.testing.assert_allclose(np.asarray(made.dequantized())[sure], nearest[sure], atol=1e-5)


def test_smoothquant_is_for_quantised_activations():
    rules = [Rule(module_path=".*", weight="int8")] * 2
    with pytest.raises(ConfigError, match="use --recipe w8a8"):
        smoothquant.factors(MATRICES, moments(X), rules, Rounding(method="smoothquant"))


def with_outliers(config):
    """A model some of whose channels are 30 times the others, as large models have."""
    model = LanguageModel.build(config)
    params = jax.tree.map(lambda x: x * (8 if x.ndim > 2 else 1), model.init(jax.random.key(0)))
    for name in ("attention_norm", "mlp_norm"):
        scale = params["blocks"][name]["scale"]
        params["blocks"][name]["scale"] = scale.at[:, ::8].set(30.0)
    return model, params


LLAMA = LlamaConfig(vocab_size=48, d_model=32, n_layers=2, n_heads=4, d_ff=64)


def run(model, params, recipe, rounding):
    places = [(stack_name(place.stack), place.index) for place in model.decoder.places]
    layers = LayerByLayer(model, params, ROWS)
    return quantize_calibrated(params, recipe, summed_axes(model), rounding, layers, places)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "recipe"), [("awq", "int4"), ("smoothquant", "w8a8"), ("autoround", "int4")]
)
def test_outputs_change_less_than_by_rounding_to_nearest(method, recipe):
    rule = NAMED[recipe].rules[0]
    rules = Recipe(rules=(rule,))
    model, params = with_outliers(LLAMA)
    done = run(model, params, rules, Rounding(method=method))
    plain = quantize(params, rules, summed_axes(model))
    logits = jax.jit(model.logits)

    def off(one):
        return float(jnp.square(logits(one, ROWS) - logits(params, ROWS)).mean())

    assert off(done.params) < 0.85 * off(plain.params)
    moved = not np.array_equal(
        done.params["blocks"]["mlp_norm"]["scale"], params["blocks"]["mlp_norm"]["scale"]
    )
    assert moved == (method != "autoround")


@pytest.mark.slow
def test_folded_factors_cancel():
    """Factors of norms, of values and of the MLP's linear half: before rounding the layer puts out
    what it did."""
    model, params = with_outliers(LLAMA)
    layers, plain = (LayerByLayer(model, params, ROWS) for _ in range(2))
    places = layers.folds(0)
    assert [place.producers[0] for place in places] == [
        "blocks.attention_norm.scale",
        "blocks.mlp_norm.scale",
        "blocks.attention.value.kernel",
        "blocks.mlp.up.kernel",
    ]
    own = {name: leaf[0] for name, leaf in named_leaves(params).items() if "blocks." in name}
    rules = {name: NAMED["int4"].rules[0] for name in own if name.endswith("kernel")}
    found = layers.moments(0, list(rules))
    changed, _ = fold_layer(own, found, rules, Rounding(method="awq"), places)
    assert len(changed) == 2 + len(rules)
    layers.advance(0, changed)
    plain.advance(0, {})
    most = np.abs(plain._rows[0]).max()
    np.testing.assert_allclose(layers._rows[0], plain._rows[0], atol=1e-4 * most)
    scale = np.asarray(changed["blocks.attention_norm.scale"])
    np.testing.assert_array_equal(scale, scale.astype(jnp.bfloat16).astype(np.float32))
    assert np.ptp(scale[1:8]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gemma2", {"attention_norm.scale", "mlp_norm.scale", "mlp.up.kernel"}),
        ("olmo2", {"mlp.up.kernel"}),
        ("qwen3_next", {"delta_net_norm.scale"}),
    ],
)
def test_places_follow_from_the_family(kind, expected):
    """Norms behind branches take no factors, and routers read what a mixture's norm gives."""
    model = LanguageModel.build(families()[kind])
    params = jax.tree.map(lambda x: x * (8 if x.ndim > 2 else 1), model.init(jax.random.key(0)))
    layers = LayerByLayer(model, params, ROWS[:1])
    found = set()
    for layer in range(len(model.decoder.layers)):
        found |= {place.producers[0].partition(".")[2] for place in layers.folds(layer)}
        layers.advance(layer, {})
    assert found == expected
