"""Metric sinks: a killed writer, resume, NaN, TensorBoard read back, fan-out."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import TrainError
from ziggurat.train.metrics import JsonLinesSink, Sinks, TensorBoardSink, curve, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def write_steps(path, steps, **options):
    with JsonLinesSink(path, **options) as sink:
        for step in steps:
            sink.write(step, {"loss": 10.0 - step})


def test_lines_are_json_and_on_disk_at_once(path):
    sink = JsonLinesSink(path, clock=lambda: 12.5)
    sink.write(3, {"loss": 2, "scale": np.float32(0.5), "lr": jnp.float32(0.25)})
    assert json.loads(path.read_bytes()) == {  # before close
        "step": 3, "time_unix_s": 12.5, "loss": 2.0, "scale": 0.5, "lr": 0.25,
    }  # fmt: skip
    sink.close()
    sink.close()
    with pytest.raises(TrainError, match="metrics file"):
        sink.write(4, {})


def test_nonfinite_stays_valid_json(path):
    with JsonLinesSink(path) as sink:
        sink.write(0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})

    def refuse(constant):
        raise AssertionError(constant)

    raw = json.loads(path.read_text(), parse_constant=refuse)
    assert raw["a"] is None
    assert raw["nonfinite"] == {"a": "nan", "b": "inf", "c": "-inf"}
    (row,) = read_metrics(path)
    assert math.isnan(row["a"])
    assert (row["b"], row["c"], row["d"]) == (math.inf, -math.inf, 1.0)
    assert "nonfinite" not in row


WRITER = """
import sys
from ziggurat.train.metrics import JsonLinesSink
sink = JsonLinesSink(sys.argv[1])
step = 0
while True:
    sink.write(step, {"loss": 1.0 / (step + 1), "note_" + "x" * 200: 1.0})
    step += 1
"""


@pytest.mark.chaos
def test_kill_9_loses_at_most_the_torn_line(path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        deadline = time.monotonic() + 60
        while not (path.exists() and path.stat().st_size > 50_000):
            assert time.monotonic() < deadline, "the writer wrote nothing"
            assert writer.poll() is None, "the writer died by itself"
            time.sleep(0.01)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    # What a kill in the middle of the system call (or a power cut) leaves behind:
    whole = len(read_metrics(path))
    os.truncate(path, path.stat().st_size - 10)
    steps = [row["step"] for row in read_metrics(path)]
    assert steps == list(range(whole - 1))
    with JsonLinesSink(path) as sink:
        sink.write(whole - 1, {"loss": 0.0})
    assert [row["step"] for row in read_metrics(path)] == list(range(whole))


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"\0" * 17, b'{"loss": 1.0}\n', b"\xff\xfe"])
def test_torn_tails_are_dropped(path, tail):
    write_steps(path, range(3))
    good = path.read_bytes()
    path.write_bytes(good + tail)
    assert len(read_metrics(path)) == 3
    write_steps(path, [3])
    assert path.read_bytes().startswith(good)
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 3]


def test_whole_last_line_without_newline_is_kept(path):
    write_steps(path, range(3))
    path.write_bytes(path.read_bytes()[:-1])
    write_steps(path, [3])
    assert curve(read_metrics(path), "loss") == [(0, 10.0), (1, 9.0), (2, 8.0), (3, 7.0)]


def test_resume_has_each_step_once(path):
    write_steps(path, range(8))
    with JsonLinesSink(path, resume_step=5) as sink:
        for step in range(5, 7):
            sink.write(step, {"loss": -1.0})
    assert curve(read_metrics(path), "loss") == [
        *((step, 10.0 - step) for step in range(5)), (5, -1.0), (6, -1.0),
    ]  # fmt: skip
    write_steps(path, range(2), resume_step=0)
    assert len(read_metrics(path)) == 2


def test_opening_an_intact_file_does_not_rewrite_it(path):
    write_steps(path, range(3))
    before = path.stat().st_ino
    write_steps(path, [3], resume_step=3)
    assert path.stat().st_ino == before


def test_damage_in_the_middle_is_an_error(path):
    write_steps(path, range(3))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + lines[2])
    with pytest.raises(TrainError, match="line 2: found 'garbage'"):
        read_metrics(path)
    with pytest.raises(TrainError, match="line 2"):
        JsonLinesSink(path)


def test_refusals(path, tmp_path):
    with JsonLinesSink(path) as sink, pytest.raises(ValueError, match="step"):
        sink.write(0, {"step": 1.0})
    with pytest.raises(TrainError, match="no such file"):
        read_metrics(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="metrics file"):
        JsonLinesSink(tmp_path / "file" / "metrics.jsonl")


def tensorboard_scalars(directory, name):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reader.EventAccumulator(str(directory))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def raw_scalars(directory, name):
    """The event files, read by hand: works where only tensorboardX is installed."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    found: dict[int, float] = {}
    for file in sorted(directory.glob("events*")):
        content = file.read_bytes()
        while content:  # length (8), its checksum (4), event, its checksum (4)
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.HasField("session_log"):
                found = {step: value for step, value in found.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == name:
                    found[event.step] = value.simple_value
    return sorted(found.items())


@pytest.mark.parametrize("read", [tensorboard_scalars, raw_scalars])
def test_tensorboard_reads_back_and_resumes(tmp_path, read):
    with TensorBoardSink(tmp_path) as sink:
        for step in range(4):
            sink.write(step, {"loss": 4.0 - step, "lr": jnp.float32(0.5)})
    with TensorBoardSink(tmp_path, resume_step=2) as sink:  # within the same second
        sink.write(2, {"loss": 20.0})
    assert read(tmp_path, "loss") == [(0, 4.0), (1, 3.0), (2, 20.0)]
    assert read(tmp_path, "lr") == [(0, 0.5), (1, 0.5)]


class Broken:
    def write(self, step, metrics):
        raise OSError("disk full")

    def close(self):
        raise OSError("gone")


def test_fan_out_reaches_all_sinks_before_raising(path):
    file = JsonLinesSink(path)
    sinks = Sinks(Broken(), file)
    with pytest.raises(OSError, match="disk full"):
        sinks.write(0, {"loss": 1})
    with pytest.raises(OSError, match="gone"):
        sinks.close()
    assert curve(read_metrics(path), "loss") == [(0, 1.0)]
    with pytest.raises(TrainError):
        file.write(1, {})
