"""A killed run ends byte for byte where an undisturbed one ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.compilation import QUICK
from tests.train.chaos import LOSSES
from tests.train.runs import TEXT

from ziggurat.checkpoint import Checkpoints
from ziggurat.train.metrics import read_metrics

STEPS = 40


def start(directory: Path, name: str, *overrides: str) -> subprocess.Popen:
    file = directory / "tiny.toml"
    file.write_text(TEXT)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(directory / "compiled")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    fixed = (f"--set=name={name}", f"--set=output={directory}", f"--train.steps={STEPS}")
    command = [sys.executable, "-m", "ziggurat.cli.main", "train", str(file), *fixed, *overrides]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def curve(run: Path) -> list[tuple[int, float, float]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_bytes().splitlines()) > step:
            return
        time.sleep(0.005)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 6), (2, 6)])
def test_kills_leave_no_trace(processes, kills, tmp_path):
    """Twelve of the kills that ``python -m tests.train.chaos`` does by the hundred."""
    tally = tmp_path / "tally.json"
    command = [sys.executable, "-m", "tests.train.chaos", f"--kills={kills}"]
    command += [f"--processes={processes}", f"--seed={processes}", f"--tally={tally}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    (counted,) = json.loads(tally.read_text())
    assert counted["kills"] == kills
    assert counted["steps compared"] > kills
    assert counted["batches compared"] > counted["steps compared"]
    assert any(name.startswith("restored from") for name in counted)
    assert not set(counted) & set(LOSSES), counted


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_143(tmp_path):
    process = start(tmp_path, "stopped", "--checkpoint.every=1000")
    wait_for_step(tmp_path / "stopped", 3, process)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 143)
    newest = Checkpoints(tmp_path / "stopped" / "checkpoints").latest()
    assert newest is not None
    assert 3 < newest.step < STEPS
    assert f"stopped by SIGTERM after step {newest.step}" in output
    finish(start(tmp_path, "stopped", "--checkpoint.every=1000"))
    finish(start(tmp_path, "whole"))
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
