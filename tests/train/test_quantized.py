"""``[quantize]``: training for a format, resumed, sharded, read back, exported and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.train.runs import resolved, run

from ziggurat.checkpoint import read_arrays
from ziggurat.core.errors import ConfigError
from ziggurat.core.pytrees import named_leaves
from ziggurat.kernels.linear import WeightFormat
from ziggurat.kernels.linear.rounded import fake_quantized, quantize_array
from ziggurat.models.loading import pretrained
from ziggurat.models.loading.step_files import step_directory
from ziggurat.models.quantized import dequantized, formats_of
from ziggurat.train.loop import train
from ziggurat.train.metrics import read_metrics

SETTINGS = (
    "checkpoint.every=2",
    "checkpoint.keep_last=9",
    "optimizer.schedule={kind='constant'}",
    "quantize={recipe='int4'}",
)
TOKENS = np.arange(32)[None] % 200


def losses(directory):
    return [row["loss"] for row in read_metrics(directory / "metrics.jsonl") if "loss" in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps on one device."""
    directory = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        train(resolved(f"output={directory}", *SETTINGS, "train.steps=4"))
    return directory / "tiny"


@pytest.mark.parametrize("kind", ["int4", "fp8_e4m3"])
def test_values_are_rounded_and_gradients_are_not(kind):
    weight = jax.random.normal(jax.random.key(0), (2, 32, 4))
    format = WeightFormat(kind, tile_size=16)
    made = fake_quantized(weight, format, -2)
    np.testing.assert_array_equal(made, quantize_array(weight, format, -2).dequantized())
    assert float(jnp.abs(made - weight).max()) > 0.01
    other = jax.random.normal(jax.random.key(1), weight.shape)
    slope = jax.grad(lambda w: (fake_quantized(w, format, -2) * other).sum())(weight)
    np.testing.assert_array_equal(slope, other)


@pytest.mark.slow
def test_the_loss_is_that_of_rounded_weights(trained, tmp_path, monkeypatch):
    """Before the first update, against the floats' loss; and the run learns."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    train(resolved(f"output={tmp_path}", *SETTINGS[:-1], "train.steps=1"))
    plain, rounded = losses(tmp_path / "tiny")[0], losses(trained)
    assert 1e-6 < abs(plain - rounded[0]) < 0.1
    assert rounded[-1] < rounded[0] - 0.1


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_undisturbed_one(trained, tmp_path, monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    for steps in (2, 4):
        train(resolved(f"output={tmp_path}", *SETTINGS, f"train.steps={steps}"))
    assert losses(tmp_path / "tiny") == losses(trained)
    ends = (step_directory(place) for place in (tmp_path / "tiny", trained))
    first, second = (named_leaves(read_arrays(end, "params")) for end in ends if end)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.slow
def test_sharded_as_on_one_device(trained, tmp_path):
    """Matrices divided along both axes: tiles of inputs lie on several devices."""
    mesh = ("mesh.fsdp=2", "mesh.tensor=2", "mesh.data=2")
    train(resolved(f"output={tmp_path}", *SETTINGS, "train.steps=2", *mesh))
    np.testing.assert_allclose(losses(tmp_path / "tiny"), losses(trained)[:2], rtol=1e-4)


@pytest.mark.slow
def test_what_is_read_and_exported_is_what_was_trained(trained, tmp_path):
    """Read, and as compressed-tensors: the float weights of the step, rounded."""
    found = pretrained.load(trained)
    formats = formats_of(found.params)
    assert {formats[n].weight for n in formats if n.startswith("blocks")} == {"int4"}
    assert len(formats) == 8
    step = step_directory(trained)
    assert step is not None
    floats, kernel = named_leaves(read_arrays(step, "params")), "blocks.mlp.up.kernel"
    expected = fake_quantized(jnp.asarray(floats[kernel]), formats[kernel], -2)
    np.testing.assert_array_equal(named_leaves(dequantized(found.params))[kernel], expected)
    logits = jax.jit(found.model.logits)(found.params, TOKENS)
    pretrained.export_hf(found, tmp_path / "hf", layout="compressed-tensors")
    again = pretrained.load(tmp_path / "hf")
    assert formats_of(again.params)
    np.testing.assert_allclose(jax.jit(again.model.logits)(again.params, TOKENS), logits, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["quantize={recipe='w8a8'}"], "whose activations stay floats"),
        (["quantize={recipe='int3'}"], "recipe"),
        (["quantize={}"], "one of recipe and rules"),
        (
            ["quantize={recipe='int8', rules=[{module_path='.*', weight='int8'}]}"],
            "one of recipe and rules",
        ),
        (["quantize={recipe='int8'}", "objective={kind='dpo'}"], "lm and sft train"),
        (
            ["quantize={recipe='int8'}", "objective={kind='sft'}", "adapter={rank=2}"],
            "no \\[adapter\\]",
        ),
    ],
)
def test_mistakes(overrides, says):
    with pytest.raises(ConfigError, match=says):
        run(*overrides)


def test_a_tile_that_does_not_divide_is_refused(tmp_path):
    rules = "[{module_path='blocks/.*', weight='int4', tile_size=7}]"
    with pytest.raises(ConfigError, match="tile_size 7, which does not divide 32"):
        train(resolved(f"output={tmp_path}", f"quantize={{rules={rules}}}"))
