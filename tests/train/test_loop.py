"""The loop in one process: learning, metrics, evaluation, sharding, bad steps, resuming rules."""

import math

import jax
import numpy as np
import pytest
from tests.train.runs import resolved

from ziggurat.checkpoint import Checkpoints
from ziggurat.core.errors import ConfigError, TrainError
from ziggurat.core.pytrees import named_leaves
from ziggurat.train import experiment as experiment_
from ziggurat.train.loop import train
from ziggurat.train.metrics import curve, read_metrics
from ziggurat.train.summary import report

ALONE = "mesh={data=1, fsdp=-1}"


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def losses(directory):
    return [loss for _, loss in curve(read_metrics(directory / "metrics.jsonl"), "loss")]


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


@pytest.mark.parametrize(
    "mesh",
    ["mesh={fsdp=4, tensor=2}", "mesh={fsdp=2, tensor=2, context=2}", "mesh={data=2, fsdp=4}"],
)
def test_sharded_training_equals_unsharded(tmp_path, monkeypatch, mesh):
    """Tolerance: 2e-3 relative on the loss after 12 steps. Reductions run in another order on eight
    devices; Adam turns differences of 1e-7 in small gradients into differences of its step size,
    which is why parameters are compared in the mean and not one by one."""
    steps = ("train.steps=12", "checkpoint.every=12", "optimizer.lr=1e-3")
    train(resolved(f"output={tmp_path}", *steps, "name=sharded", mesh))
    assert len(jax.devices()) == 8
    devices = jax.devices()[:1]
    with monkeypatch.context() as alone:
        alone.setattr(jax, "devices", lambda *_: devices)
        train(resolved(f"output={tmp_path}", *steps, "name=plain"))
    np.testing.assert_allclose(
        losses(tmp_path / "sharded"), losses(tmp_path / "plain"), rtol=2e-3, atol=0
    )
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("sharded", "plain")]
    assert [r["target_tokens"] for r in rows[0] if "loss" in r] == [
        r["target_tokens"] for r in rows[1] if "loss" in r
    ]
    np.testing.assert_allclose(rows[0][0]["grad_norm"], rows[1][0]["grad_norm"], rtol=1e-4)


def test_a_checkpoint_moves_to_another_mesh(tmp_path):
    options = (f"output={tmp_path}", "optimizer.lr=1e-3", "optimizer.schedule={kind='constant'}")
    train(resolved(*options, "train.steps=4", "mesh={fsdp=8}"))
    outcome = train(resolved(*options, "train.steps=8", "mesh={fsdp=2, tensor=2, data=2}"))
    assert int(outcome.state.step) == 8
    whole = resolved(*options, "train.steps=8", "mesh={fsdp=8}", "name=whole")
    train(whole)
    np.testing.assert_allclose(losses(tmp_path / "tiny"), losses(tmp_path / "whole"), rtol=2e-3)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, one_device):
    options = (f"output={tmp_path}", "train.steps=3")
    train(resolved(*options, "name=whole"))
    train(resolved(*options, "name=parts", "train.accumulate=4"))
    a, b = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    # float32 sums in another order
    np.testing.assert_allclose(a[0]["grad_norm"], b[0]["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(tmp_path / "parts"), rtol=1e-4)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_memory_not_results(tmp_path, one_device, remat):
    options = (f"output={tmp_path}", "train.steps=3")
    train(resolved(*options, "name=plain"))
    train(resolved(*options, "name=remat", f"train.remat={remat}"))
    np.testing.assert_allclose(losses(tmp_path / "plain"), losses(tmp_path / "remat"), rtol=1e-5)


def test_bfloat16_trains(tmp_path, one_device):
    train(
        resolved(
            f"output={tmp_path}",
            "train.steps=20",
            "train.precision=bfloat16",
            "checkpoint.every=20",
        )
    )
    found = losses(tmp_path / "tiny")
    assert found[-1] < found[0] - 0.5


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
    with pytest.raises(
        TrainError, match="2 steps in a row.*lower the learning rate.*step 4 is saved"
    ):
        train(resolved(f"output={tmp_path}", "train.steps=20", "train.max_bad_steps=2"))


def test_other_settings_are_another_run(tmp_path, one_device):
    train(resolved(f"output={tmp_path}", "train.steps=2"))
    with pytest.raises(ConfigError, match=r"cannot be resumed: found optimizer.lr = 0.5; expected"):
        train(resolved(f"output={tmp_path}", "train.steps=2", "optimizer.lr=0.5"))


def test_a_finished_run_does_nothing_more(tmp_path, one_device):
    options = (f"output={tmp_path}", "train.steps=2")
    train(resolved(*options))
    before = losses(tmp_path / "tiny")
    outcome = train(resolved(*options))
    assert outcome.finished
    assert losses(tmp_path / "tiny") == before
