"""A run's directory over its life: failed first starts, lost checkpoints, reports that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import pytest
from tests.compilation import QUICK
from tests.train.runs import TEXT, resolved

from ziggurat.checkpoint.object_store import ObjectStore
from ziggurat.checkpoint.step_store import StoreError
from ziggurat.cli.main import main
from ziggurat.core.errors import ConfigError, TrainError, ZigguratError
from ziggurat.train.loop import train
from ziggurat.train.metrics import read_metrics
from ziggurat.train.restart import set_aside
from ziggurat.train.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def one_device(monkeypatch, request):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, to be copied."""
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        train(resolved(f"output={output}", "train.steps=4"))
    return output / "tiny"


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "tiny")


def losses(directory):
    rows = read_metrics(directory / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


@pytest.mark.parametrize(
    "mistake",
    [
        "data.sources.0.path=nowhere",
        "model.n_heads=3",
        "mesh.fsdp=7",
        "train.attention=flash",
        "optimizer.no_decay=['nothing.like.it']",
        "report.prompts=['a prompt that is as long as the rows of training']",
        "checkpoint.persistent={url='nowhere://x', every=2}",
        "data={sources=[{kind='text',path='.'}],sequence_length=32,batch_size=8,epochs=1}",
    ],
)
def test_a_start_that_fails_locks_nothing(mistake, tmp_path, monkeypatch):
    """Whatever is wrong, the run has made no step, and the corrected command is another run."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZigguratError):
        train(resolved(f"output={tmp_path}", mistake))
    directory = RunDirectory(tmp_path / "tiny")
    assert not directory.run_file.exists()
    assert not directory.has_steps()
    directory.check(resolved(f"output={tmp_path}"))


def test_a_run_without_a_step_takes_any_settings(tmp_path):
    directory = RunDirectory(tmp_path / "tiny")
    run = resolved(f"output={tmp_path}")
    directory.identify()
    directory.publish(run, 0)
    other = resolved(f"output={tmp_path}", "optimizer.lr=0.5")
    directory.check(other)
    directory.metrics.write_text('{"step": 0, "loss"')  # torn: no step was recorded
    directory.check(other)
    directory.metrics.write_text('{"step": 0, "loss": 1.0}\n')
    with pytest.raises(ConfigError, match=r"optimizer.lr = 0.5"):
        directory.check(other)
    directory.check(run)


@pytest.mark.parametrize("gone", ["steps", "directory", "damaged"])
@pytest.mark.sweep
def test_checkpoints_that_are_gone_stop_the_run(gone, copy, tmp_path, capsys):
    """Refused without a touch of the curve; going on is by --restart, which keeps it."""
    before = (copy / "metrics.jsonl").read_bytes()
    aside = tmp_path / "aside"
    if gone == "directory":
        (copy / "checkpoints").rename(aside)
    else:
        aside.mkdir()
        for step in (copy / "checkpoints").glob("step_*"):
            shutil.copytree(step, aside / step.name)
            shutil.rmtree(step) if gone == "steps" else (step / "manifest.json").write_text("")
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT)
    command = ["train", str(file), f"--set=output={tmp_path}", "--train.steps=4"]
    assert main(command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    for part in (
        "no checkpoint, though step 4 was saved",
        "bring the checkpoints back",
        "--restart",
    ):
        assert part in line, line
    assert (copy / "metrics.jsonl").read_bytes() == before
    if gone == "damaged":
        return
    if gone == "directory":  # the first way: the disk is mounted again
        shutil.rmtree(copy / "checkpoints", ignore_errors=True)
        aside.rename(copy / "checkpoints")
        assert main(command) == 0
        assert (copy / "metrics.jsonl").read_bytes() == before
        return
    assert main([*command, "--restart"]) == 0
    assert (copy / "earlier-1" / "metrics.jsonl").read_bytes() == before
    assert [step for step, _ in losses(copy)] == [0, 1, 2, 3]
    assert losses(copy) == losses(copy / "earlier-1"), "the same run once more"


def test_a_run_with_checkpoints_is_not_restarted(copy, tmp_path):
    with pytest.raises(TrainError, match=r"found a checkpoint of step 4.*leave out --restart"):
        set_aside(resolved(f"output={tmp_path}").value)
    assert (copy / "metrics.jsonl").exists()


def test_a_kill_while_setting_aside_loses_nothing(copy, tmp_path, monkeypatch):
    shutil.rmtree(copy / "checkpoints")
    names = {path.name for path in copy.iterdir()}
    real, count = os.rename, {"left": 2}

    def killed(source, target):
        if not count["left"]:
            raise KeyboardInterrupt
        count["left"] -= 1
        real(source, target)

    monkeypatch.setattr(os, "rename", killed)
    directory = RunDirectory(copy)
    with pytest.raises(KeyboardInterrupt):
        directory.set_aside()
    with pytest.raises(TrainError, match="though step 4 was saved"):
        directory.check_saved(None)
    monkeypatch.undo()
    assert directory.set_aside() == copy / "earlier-2"
    kept = {path.name for number in (1, 2) for path in (copy / f"earlier-{number}").iterdir()}
    assert kept == names
    directory.check_saved(None)


def test_a_persistent_store_that_does_not_answer_is_no_fresh_start(copy, tmp_path, monkeypatch):
    shutil.rmtree(copy)

    def silent(*_):
        raise StoreError("checkpoint store", found="no answer")

    monkeypatch.setattr(ObjectStore, "steps", silent)
    tier = f"checkpoint.persistent={{url='{tmp_path}/store', every=2}}"
    with pytest.raises(StoreError, match="no answer"):
        train(resolved(f"output={tmp_path}", "train.steps=4", tier))


def broken(*_, **__):
    raise RuntimeError("out of paper")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("ziggurat.api.training.report", "the report left out: out of paper"),
        ("ziggurat.api.training._samples", "samples left out: out of paper"),
        (
            "ziggurat.train.metrics.TensorBoardSink",
            "sink tensorboard left out from here on: out of",
        ),
    ],
)
def test_derived_output_fails_no_run(where, said, tmp_path, monkeypatch, capsys, copy):
    monkeypatch.setattr(where, broken)
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT)
    command = ["train", str(file), f"--set=output={tmp_path}", "--train.steps=4"]
    prompts = ["--report.prompts=['de']"] if "samples" in said else []
    assert main([*command, "--report.tensorboard=true", *prompts]) == 0
    streams = capsys.readouterr()
    assert said in streams.err
    assert "finished: " in streams.out
    assert (copy / "report.html").exists() == ("report" not in said)


def test_a_prompt_without_room_is_refused_before_step_0(tmp_path, capsys):
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT)
    prompts = f"--report.prompts=['{'x' * 40}']"
    for more in ([], ["--dry-run"]):
        assert main(["train", str(file), f"--set=output={tmp_path}", prompts, *more]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "report.prompts: found 'xxxx" in line
        assert "which has 40 tokens; expected 1 to 31 tokens" in line
    assert not (tmp_path / "tiny").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_an_unfinished_run_with_its_code(number, code, tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT)
    command = [sys.executable, "-m", "ziggurat.cli.main", "train", str(file), "--train.steps=99999"]
    process = subprocess.Popen(
        [*command, f"--set=output={tmp_path}", "--checkpoint.every=99999"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    metrics = tmp_path / "tiny" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        signal.sigtimedwait([], 0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert f"stopped by {number.name}" in output
    saved = json.loads((tmp_path / "tiny" / "saved.json").read_text())["step"]
    assert (tmp_path / "tiny" / "checkpoints" / f"step_{saved:08d}").is_dir()
