"""A run that is asked to stop: in time, on all processes after the same step."""

import os
import signal
import subprocess
import sys

import pytest
from tests.compilation import QUICK
from tests.free_port import free_port
from tests.train.runs import TEXT
from tests.train.test_resuming import STEPS, wait_for_step

from ziggurat.checkpoint import Checkpoints
from ziggurat.train.metrics import read_metrics
from ziggurat.train.stopping import LATE

LATE_RUN = """
import logging, os, signal, time
from ziggurat.train.stopping import StopRequest
logging.basicConfig(format="%(message)s")
stop = StopRequest(within_s=0.2)
with stop.listening():
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.after(3) and stop.signal is signal.SIGTERM
    print("asked", flush=True)
    time.sleep(60)  # a save that hangs
"""


def test_a_save_that_hangs_ends_with_an_error():
    done = subprocess.run(
        [sys.executable, "-c", LATE_RUN], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == LATE, done.stderr
    assert done.stdout == "asked\n"
    assert done.stderr.splitlines()[-1].startswith("not saved within 0.2 s of the request to stop")


def test_a_save_in_time_is_not_disturbed():
    code = LATE_RUN.replace("time.sleep(60)", "pass") + "\ntime.sleep(0.5)\nprint('end')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (0, "asked\nend\n"), done.stderr


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(tmp_path):
    address = f"localhost:{free_port()}"
    file, run = tmp_path / "tiny.toml", tmp_path / "both"
    file.write_text(TEXT)
    command = [sys.executable, "-m", "ziggurat.cli.main", "train", str(file), "--set=name=both"]
    command += [f"--set=output={tmp_path}", "--train.steps=100000", "--checkpoint.every=100000"]
    command += ["--mesh.data=2", "--coordinator", address, "--processes", "2", "--process"]
    processes = [
        subprocess.Popen(
            [*command, str(index)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        for index in range(2)
    ]
    try:
        wait_for_step(run, STEPS // 10, processes[0])
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [143, 143], outputs
    newest = Checkpoints(run / "checkpoints").latest()
    assert newest is not None
    assert STEPS // 10 < newest.step < 100000
    assert f"stopped by SIGTERM after step {newest.step}" in outputs[0]
    for output in outputs:
        assert f"saved step {newest.step} in" in output
    steps = [row["step"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(newest.step))
