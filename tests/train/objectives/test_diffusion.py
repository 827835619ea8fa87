"""The diffusion objectives: what they draw, what they learn, and that a run of them resumes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.checkpoint import Checkpoints, read_arrays
from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.data import Digits, ImageData, build_images
from ziggurat.models import DiffusionModel, DitConfig
from ziggurat.models.diffusion import DiscreteNoise, RectifiedFlow
from ziggurat.models.loading import pretrained_pipeline
from ziggurat.train.ahead_of_time import subject
from ziggurat.train.config import RunConfig
from ziggurat.train.experiment import prepare
from ziggurat.train.loop import train
from ziggurat.train.metrics import read_metrics
from ziggurat.train.objectives.diffusion import (
    Ddpm,
    FlowMatching,
    diffusion,
    flow_levels,
    min_snr_weights,
)

TEXT = """
name = "digits"
seed = 3

[model]
kind = "dit"
image_size = 8
channels = 1
classes = 10
patch_size = 4
d_model = 16
n_layers = 2
n_heads = 2

[data]
kind = "images"
source = { kind = "digits" }
batch_size = 16
eval_fraction = 0.1

[objective]
kind = "flow"

[optimizer]
kind = "adamw"
lr = 1e-2

[train]
steps = 6
ema_decay = 0.9

[checkpoint]
every = 2

[evaluation]
batches = 1

[report]
tensorboard = false
"""
DIT = DitConfig(
    image_size=8, channels=1, classes=10, patch_size=4, d_model=16, n_layers=1, n_heads=2
)


def resolved(*overrides):
    return config.parse(RunConfig, TEXT, overrides, source="digits.toml")


@pytest.fixture(scope="module")
def batch():
    data = build_images(ImageData(source=Digits(), batch_size=16), seed=0)
    return {name: jnp.asarray(rows) for name, rows in data.batch(0).items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(resolved(f"output={tmp_path_factory.mktemp('whole')}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "node",
    [
        FlowMatching(shift=3.0),
        Ddpm(min_snr=5.0, class_dropout=0.0),
        Ddpm(prediction="x0", schedule="cosine"),
    ],
    ids=lambda node: f"{node.kind}-{node.prediction}",
)
def test_draws_are_of_a_row_not_of_its_place(node, batch):
    """So micro-batches, devices and hosts change nothing. A model that says zero has the loss of
    its target: the image's mean square, or the variance of noise."""
    model = DiffusionModel.build(DIT)
    params = jax.tree.map(
        lambda leaf: 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), model.abstract
    )
    sums = jax.jit(diffusion(model, node, seed=4))
    whole = sums(params, batch, {})
    assert float(whole.weight) == 16
    turned = sums(params, {name: rows[::-1] for name, rows in batch.items()}, {})
    np.testing.assert_allclose(turned.loss, whole.loss, rtol=1e-5)
    odd = jnp.arange(16) % 2
    halves = [sums(params, batch | {"weight": w.astype(jnp.float32)}, {}) for w in (odd, 1 - odd)]
    assert [float(half.weight) for half in halves] == [8, 8]
    np.testing.assert_allclose(sum(half.loss for half in halves), whole.loss, rtol=1e-5)
    another = sums(params, batch | {"step": batch["step"] + 1}, {})
    assert abs(float(another.loss / whole.loss) - 1) > 1e-3
    silent = float(sums(jax.tree.map(jnp.zeros_like, params), batch, {}).loss / 16)
    if node.prediction == "x0":
        assert silent == pytest.approx(float(jnp.mean(batch["images"] ** 2)), rel=1e-5)
    elif node.prediction == "flow":
        square = float(jnp.mean(batch["images"] ** 2))  # and 2 x 1024 draws of noise
        assert abs(silent - 1 - square) < 0.3


def test_levels_are_drawn_as_declared():
    step, index = jnp.zeros(4096, jnp.int32), jnp.arange(4096)

    def sigmas(node):
        return np.asarray(jax.jit(lambda s, i: flow_levels(node, 0, s, i)[2])(step, index))

    middle = sigmas(FlowMatching())
    assert abs(np.median(middle) - 0.5) < 0.02
    assert abs(np.quantile(middle, 0.8413) - 1 / (1 + np.exp(-1))) < 0.02
    assert abs(np.quantile(sigmas(FlowMatching(times="uniform")), 0.25) - 0.25) < 0.03
    assert abs(np.median(sigmas(FlowMatching(shift=3.0))) - 0.75) < 0.02


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_min_snr_bounds_the_weight_of_an_error_in_the_image(prediction):
    node = Ddpm(prediction=prediction, min_snr=5.0)
    alpha, sigma = node.levels()
    snr = (alpha / sigma) ** 2
    per_image = {"epsilon": snr, "x0": 1.0, "v": snr + 1}[prediction]
    np.testing.assert_allclose(min_snr_weights(node) * per_image, np.minimum(snr, 5.0))
    assert (min_snr_weights(Ddpm()) == 1).all()


@pytest.mark.slow
def test_a_run_learns_and_its_average_follows(finished):
    rows = read_metrics(finished.directory.metrics)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert [row for row in rows if "eval_loss" in row]
    state = finished.state
    kernel, average = (p["out"]["bias"] for p in (state.params, state.average))
    assert 0 < float(jnp.abs(average).max()) < float(jnp.abs(kernel).max())


@pytest.mark.slow
def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_does(finished, tmp_path):
    """The average too; the last checkpoint is taken away, and its steps are done again."""
    shutil.copytree(finished.directory.path, tmp_path / "digits")
    shutil.rmtree(tmp_path / "digits" / "checkpoints" / "step_00000006")
    again = train(resolved(f"output={tmp_path}"))
    assert again.directory.read_sessions()[-1]["step"] == 4
    for name in ("params", "optimizer", "average"):
        ours, theirs = getattr(again.state, name), getattr(finished.state, name)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    newest = Checkpoints(finished.directory.checkpoints).latest()
    stored = read_arrays(newest.path, "average")
    np.testing.assert_array_equal(stored["patch"], finished.state.average["patch"])


def test_a_checkpoint_can_be_drawn_from_alone(finished):
    pipeline = pretrained_pipeline.load(finished.directory.path)
    assert pipeline.around.process == RectifiedFlow()
    assert pipeline.around.labels == tuple("0123456789")
    expected = {True: finished.state.average, False: finished.state.params}
    for averaged, params in expected.items():
        found = pretrained_pipeline.load(finished.directory.path, averaged=averaged)
        np.testing.assert_array_equal(found.weights["params"]["patch"], params["patch"])


def test_training_goes_on_from_trained_weights(finished):
    path = json.dumps(str(finished.directory.path))
    text = TEXT[: TEXT.index("[model]")] + TEXT[TEXT.index("[data]") :]
    text += f"[model]\nkind = 'pretrained'\npath = {path}\n"
    tuned = prepare(config.parse(RunConfig, text).value)
    assert tuned.parts.start is not None
    np.testing.assert_array_equal(tuned.parts.start["patch"], finished.state.average["patch"])
    with pytest.raises(ConfigError, match="what the weights were trained for: RectifiedFlow"):
        prepare(config.parse(RunConfig, text, ['objective.kind="ddpm"']).value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.image_size=16", "found 16 and 1; expected 8 and 1, as the images have"),
        ("model.classes=9", "model.classes: found 9; expected at least 10"),
        ('objective.kind="lm"', "data.kind: found 'images', expected text or problems for lm"),
        ("model.learned_variance=true", "does not train a variance"),
        ('report.prompts=["x"]', "expected nothing for flow"),
        ("train.ema_decay=1.5", "between 0 and 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(override, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        train(resolved(override, f"output={tmp_path}"))


def test_a_run_is_planned_as_any_other():
    seen = subject(resolved().value, jax.devices()[:8])
    assert seen.tokens == 16 * 4
    assert seen.arguments[0].average is not None
    assert Ddpm().prediction == DiscreteNoise().prediction
