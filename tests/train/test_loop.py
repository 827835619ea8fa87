"""The loop in one process: learning, metrics, evaluation, sharding, bad steps, resuming rules.

Compiling dominates these tests, so that runs are shared: ``plain`` is the undisturbed reference on
one device, which a run on any mesh, or with any way of saving memory, must follow.
"""

import functools
import math

import jax
import numpy as np
import pytest
from tests.train.runs import resolved

from ziggurat.checkpoint import Checkpoints
from ziggurat.core.errors import ConfigError, TrainError
from ziggurat.core.pytrees import named_leaves
from ziggurat.train import experiment as experiment_
from ziggurat.train import loop
from ziggurat.train.loop import train
from ziggurat.train.metrics import curve, read_metrics
from ziggurat.train.summary import report

STEPS = 12
SETTINGS = (
    f"train.steps={STEPS}",
    "checkpoint.every=4",
    "checkpoint.keep_last=9",
    "optimizer.lr=1e-3",
    "optimizer.schedule={kind='constant'}",
)


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Directory of the reference run, and its outcome."""
    directory = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        outcome = train(resolved(f"output={directory}", *SETTINGS))
    return directory / "tiny", outcome


def rows(directory):
    return [row for row in read_metrics(directory / "metrics.jsonl") if "loss" in row]


def losses(directory):
    return [row["loss"] for row in rows(directory)]


def test_a_run_learns_saves_evaluates_and_reports(tmp_path, one_device):
    run = resolved(
        f"output={tmp_path}",
        "train.steps=30",
        "checkpoint.every=10",
        "data.eval_fraction=0.3",
        "evaluation.every=10",
        "report.tensorboard=true",
    )
    outcome = train(run)
    assert outcome.finished
    found = losses(tmp_path / "tiny")
    assert len(found) == 30
    assert abs(found[0] - math.log(288)) < 0.3, "an untrained model guesses evenly"
    assert found[-1] < found[0] - 1.0
    held_out = curve(read_metrics(tmp_path / "tiny" / "metrics.jsonl"), "eval_loss")
    assert [step for step, _ in held_out] == [9, 19, 29]
    assert held_out[-1][1] < held_out[0][1]
    steps = [info.step for info in Checkpoints(tmp_path / "tiny" / "checkpoints").steps()]
    assert steps == [20, 30]
    page = report(outcome).read_text()
    assert f"{outcome.experiment.model.parameter_count:,}" in page
    assert list((tmp_path / "tiny" / "tensorboard").iterdir())
    ledger = outcome.timer.ledger()
    assert {"start", "compile", "data", "step", "evaluation", "checkpoint"} <= set(ledger)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["mesh={fsdp=4, tensor=2}", "mesh={fsdp=2, tensor=2, context=2}"])
def test_sharded_training_equals_unsharded(tmp_path, plain, mesh):
    """Tolerance: 2e-3 relative on the losses. Sums run in another order on eight devices, and Adam
    turns differences of 1e-7 in small gradients into differences of its step size. The first
    gradient, before Adam has acted, agrees to 1e-4."""
    assert len(jax.devices()) == 8
    train(resolved(f"output={tmp_path}", *SETTINGS, mesh))
    found, expected = rows(tmp_path / "tiny"), rows(plain[0])
    np.testing.assert_allclose(losses(tmp_path / "tiny"), losses(plain[0]), rtol=2e-3)
    np.testing.assert_allclose(found[0]["grad_norm"], expected[0]["grad_norm"], rtol=1e-4)
    for name in ("step", "target_tokens", "learning_rate"):
        assert [row[name] for row in found] == [row[name] for row in expected]


@pytest.mark.slow
def test_a_checkpoint_moves_to_another_mesh(tmp_path, plain):
    """Four steps on one device, the rest on eight: as if it had stayed."""
    source = plain[0] / "checkpoints" / "step_00000004"
    target = tmp_path / "tiny" / "checkpoints" / source.name
    target.parent.mkdir(parents=True)
    target.symlink_to(source)
    (tmp_path / "tiny" / "run.toml").write_text((plain[0] / "run.toml").read_text())
    outcome = train(resolved(f"output={tmp_path}", *SETTINGS, "mesh={data=2, fsdp=4}"))
    assert int(outcome.state.step) == STEPS
    found = rows(tmp_path / "tiny")
    assert [row["step"] for row in found] == list(range(4, STEPS))
    np.testing.assert_allclose(losses(tmp_path / "tiny"), losses(plain[0])[4:], rtol=2e-3)
    kernel = outcome.state.params["blocks"]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "override", ["train.accumulate=4", "train.remat='full'", "train.remat='dots'"]
)
def test_saving_memory_changes_no_result(tmp_path, one_device, plain, override):
    """Tolerance: float32 sums in another order, amplified by Adam as above."""
    train(resolved(f"output={tmp_path}", *SETTINGS, override))
    found, expected = rows(tmp_path / "tiny"), rows(plain[0])
    np.testing.assert_allclose(found[0]["grad_norm"], expected[0]["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(losses(tmp_path / "tiny"), losses(plain[0]), rtol=1e-3)


@pytest.mark.slow
def test_bfloat16_follows_float32(tmp_path, one_device, plain):
    """Tolerance: bfloat16 products carry 8 bits; losses of about 5 agree to a few hundredths."""
    train(resolved(f"output={tmp_path}", *SETTINGS, "train.precision=bfloat16"))
    found = losses(tmp_path / "tiny")
    np.testing.assert_allclose(found, losses(plain[0]), rtol=2e-2)
    assert found != losses(plain[0])


def _poison(monkeypatch, steps):
    """NaN in the loss mask of some steps, as a damaged record or an overflow would give."""
    place = experiment_.Experiment.place
    count = {"step": -1}

    def poisoned(self, batch):
        count["step"] += 1
        if count["step"] in steps:
            batch = {**batch, "loss_mask": batch["loss_mask"] * np.float32("nan")}
        return place(self, batch)

    monkeypatch.setattr(experiment_.Experiment, "place", poisoned)


def test_a_bad_step_is_skipped_and_counted(tmp_path, one_device, monkeypatch):
    _poison(monkeypatch, {2})
    outcome = train(resolved(f"output={tmp_path}", "train.steps=6"))
    assert int(outcome.state.skipped) == 1
    assert int(outcome.state.bad_in_a_row) == 0
    assert all(np.isfinite(leaf).all() for leaf in named_leaves(outcome.state.params).values())
    found = losses(tmp_path / "tiny")
    assert math.isnan(found[2])
    assert not any(math.isnan(loss) for loss in found[:2] + found[3:])


def test_too_many_bad_steps_stop_the_run(tmp_path, one_device, monkeypatch):
    _poison(monkeypatch, range(3, 100))
    expected = r"2 steps in a row.*lower the learning rate.*step 4 is saved"
    with pytest.raises(TrainError, match=expected):
        train(resolved(f"output={tmp_path}", "train.steps=20", "train.max_bad_steps=2"))


def test_a_run_without_one_finite_step_does_not_finish(tmp_path, one_device, monkeypatch):
    """Fewer steps than ``max_bad_steps``: an error, which does not blame the learning rate."""
    _poison(monkeypatch, range(100))
    with pytest.raises(TrainError, match=r"not one step whose loss.*no learning rate is to blame"):
        train(resolved(f"output={tmp_path}", "train.steps=3"))


@pytest.mark.slow
def test_a_restart_finds_its_compiled_programs(tmp_path, one_device, monkeypatch):
    """The step of two runs is one entry of their common cache, and the result the same to a bit."""
    quick = functools.partial(loop.keeping_compiled, least_s=0.0)  # tests compile faster than runs
    monkeypatch.setattr(loop, "keeping_compiled", quick)
    cache, found = tmp_path / "compiled", []
    before = jax.config.jax_compilation_cache_dir
    for name in ("first", "second"):
        override = f"train.compile_cache='{cache}'"
        settings = (f"output={tmp_path}", f"name={name}", *SETTINGS, "train.steps=2", override)
        train(resolved(*settings))
        found.append(losses(tmp_path / name))
    steps = [path for path in cache.iterdir() if path.name.startswith("jit_step-")]
    assert len([path for path in steps if path.name.endswith("-cache")]) == 1
    assert found[0] == found[1]
    assert jax.config.jax_compilation_cache_dir == before


def test_other_settings_are_another_run(plain):
    output = f"output={plain[0].parent}"
    with pytest.raises(ConfigError, match=r"cannot be resumed: found optimizer\.lr = 0\.5"):
        train(resolved(output, *SETTINGS, "optimizer.lr=0.5"))


@pytest.mark.slow
def test_a_finished_run_does_nothing_more(plain, one_device):
    before = losses(plain[0])
    outcome = train(resolved(f"output={plain[0].parent}", *SETTINGS))
    assert outcome.finished
    assert losses(plain[0]) == before
