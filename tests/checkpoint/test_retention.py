"""What is kept, and that nothing is taken from under a reader in any process."""

import subprocess
import sys

import numpy as np
import pytest

from ziggurat.checkpoint import CheckpointConfig, Checkpoints
from ziggurat.checkpoint.retention import kept_by, reading, steps_to_keep

TABLE = [
    ({10, 20, 30}, 1, None, {30}),
    ({10, 20, 30}, 2, None, {20, 30}),
    ({10, 20, 30}, 5, None, {10, 20, 30}),
    ({10, 20, 30, 40, 50}, 1, 20, {20, 40, 50}),
    ({0, 5, 7}, 1, 5, {0, 5, 7}),
    ({7}, 1, 5, {7}),
    (set(), 1, 5, set()),
]
PARAMS = {"params": {"w": np.ones(2)}}


@pytest.mark.parametrize(("intact", "last", "every", "kept"), TABLE)
def test_last_and_every(intact, last, every, kept):
    assert steps_to_keep(intact, last, every) == kept


@pytest.mark.parametrize(
    ("count", "best", "kept"),
    [
        (0, "lowest", {50}),
        (1, "lowest", {20, 50}),
        (2, "lowest", {20, 30, 50}),  # 30 and 40 are equal: the older
        (1, "highest", {10, 50}),
        (9, "highest", {10, 20, 30, 40, 50}),
    ],
)
def test_best(count, best, kept):
    values = {10: 4.0, 20: 1.0, 30: 2.0, 40: 2.0, 50: 3.0}
    config = CheckpointConfig(keep_last=1, keep_best=count, best=best, metric="loss")
    intact = {step: {"loss": value, "other": -value} for step, value in values.items()}
    assert kept_by(config, intact) == kept
    without = intact | {60: {}}  # a checkpoint made before the first evaluation
    assert kept_by(config, without) == kept - ({50} if count < 9 else set()) | {60}


def test_best_on_disk_and_over_a_restart(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: 3.0, 6: float("nan")}
    config = CheckpointConfig(keep_last=1, keep_best=2)
    for step, loss in losses.items():
        with Checkpoints(tmp_path, config) as checkpoints:
            checkpoints.save(step, PARAMS, metrics={"eval_loss": loss, "loss": 0.0})
    infos = Checkpoints(tmp_path).steps()
    assert [info.step for info in infos] == [2, 4, 6]
    assert [info.metrics for info in infos] == [
        {"eval_loss": 1.0, "loss": 0.0},
        {"eval_loss": 2.0, "loss": 0.0},
        {"loss": 0.0},
    ]


def test_what_this_process_reads_is_spared(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1, keep_every=4)) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(step, PARAMS)
        checkpoints.wait()
        assert [info.step for info in checkpoints.steps()] == [4, 6]
        with reading(tmp_path / "step_00000006"):
            checkpoints.save(7, PARAMS)
            checkpoints.wait()
            assert [info.step for info in checkpoints.steps()] == [4, 6, 7]
        checkpoints.save(9, PARAMS)
        checkpoints.wait()
        assert [info.step for info in checkpoints.steps()] == [4, 9]
        assert checkpoints.discard_after(4) == [9]
        assert checkpoints.save(9, PARAMS).step == 9


READER = """
import sys
from pathlib import Path
from ziggurat.checkpoint.retention import reading
with reading(Path(sys.argv[1])):
    print("reading", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_reads_is_spared_until_it_ends(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1)) as checkpoints:
        checkpoints.save(1, PARAMS)
        checkpoints.wait()
        with subprocess.Popen(
            [sys.executable, "-c", READER, str(tmp_path / "step_00000001")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
            checkpoints.save(2, PARAMS)
            checkpoints.wait()
            assert [info.step for info in checkpoints.steps()] == [1, 2]
            reader.kill()
        checkpoints.save(3, PARAMS)
        checkpoints.wait()
        assert [info.step for info in checkpoints.steps()] == [3]


def test_the_last_intact_step_stays_though_newer_ones_are_damaged(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=3)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, PARAMS)
    for step in (2, 3):
        (tmp_path / f"step_0000000{step}" / "records.json").unlink()
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1)) as checkpoints:
        checkpoints._apply_retention()
        assert [info.step for info in checkpoints.steps()] == [1]
        assert checkpoints.restore(None, PARAMS).step == 1
