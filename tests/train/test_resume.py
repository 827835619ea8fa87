"""A killed run ends byte for byte where an undisturbed one ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.train.runs import TEXT

from ziggurat.checkpoint import Checkpoints, read_arrays
from ziggurat.core.pytrees import named_leaves
from ziggurat.train.metrics import read_metrics

STEPS = 40
KILLS = 5


def start(directory: Path, name: str, *overrides: str) -> subprocess.Popen:
    file = directory / "tiny.toml"
    file.write_text(TEXT)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
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


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def parameters(run: Path) -> dict[str, np.ndarray]:
    newest = Checkpoints(run / "checkpoints").latest()
    assert newest is not None
    assert newest.step == STEPS
    arrays = {
        item: named_leaves(read_arrays(newest.path, item)) for item in ("params", "optimizer")
    }
    return {f"{item}.{name}": leaf for item, tree in arrays.items() for name, leaf in tree.items()}


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
def test_five_kills_leave_no_trace(tmp_path):
    finish(start(tmp_path, "whole"))
    chance = random.Random(0)
    # apart, so that each kill meets a process that trains, and early enough to be in time
    at = [6 * number + chance.randrange(1, 4) for number in range(KILLS)]
    killed = []
    for step in at:
        process = start(tmp_path, "killed")
        wait_for_step(tmp_path / "killed", step, process)
        time.sleep(chance.random() * 0.02)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.append(len(curve_rows(tmp_path / "killed")))
    finish(start(tmp_path, "killed"))
    assert len(killed) == KILLS
    assert max(killed) < STEPS, "every kill must come before the end"
    whole, again = parameters(tmp_path / "whole"), parameters(tmp_path / "killed")
    assert whole.keys() == again.keys()
    for name, leaf in whole.items():
        assert leaf.tobytes() == again[name].tobytes(), name
    assert curve(tmp_path / "whole") == curve(tmp_path / "killed")
    assert [step for step, _, _ in curve(tmp_path / "killed")] == list(range(STEPS))
    sessions = (tmp_path / "killed" / "sessions.jsonl").read_text().splitlines()
    assert len(sessions) == KILLS + 1
    assert json.loads(sessions[-1])["step"] > 0


def curve_rows(run: Path) -> list[bytes]:
    file = run / "metrics.jsonl"
    return file.read_bytes().splitlines() if file.exists() else []


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(tmp_path):
    process = start(tmp_path, "stopped", "--checkpoint.every=1000")
    wait_for_step(tmp_path / "stopped", 3, process)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    newest = Checkpoints(tmp_path / "stopped" / "checkpoints").latest()
    assert newest is not None
    assert 3 < newest.step < STEPS
    assert f"stopped by SIGTERM after step {newest.step}" in output
    finish(start(tmp_path, "stopped", "--checkpoint.every=1000"))
    finish(start(tmp_path, "whole"))
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
