"""A process that saves all the time is killed at random moments; what is listed is whole."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ziggurat.checkpoint import Checkpoints, verify_step
from ziggurat.core import atomic

SAVER = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from ziggurat.checkpoint import CheckpointConfig, Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig(keep_last=2, keep_every=16))
like = {"params": {"w": jax.ShapeDtypeStruct((512, 256), np.float32)}}
latest = checkpoints.latest()
step = checkpoints.restore(None, like).step if latest else 0
print("start", step, flush=True)
while True:
    step += 1
    params = {"w": jnp.full((512, 256), step, jnp.float32) + jnp.arange(256.0)[None] / 256}
    files = {"run.toml": f"step = {step}".encode()}
    checkpoints.save(step, {"params": params}, {"step": step}, files)
    print("saved", step, flush=True)
"""


@pytest.mark.chaos
def test_killed_at_random_moments(tmp_path):
    random_moment = random.Random(20)
    newest, asked, leftovers, like = 0, 0, 0, {"params": {"w": np.zeros((512, 256), np.float32)}}
    for attempt in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"start {newest}\n"
            for _ in range(random_moment.randint(1, 4)):
                asked = int(process.stdout.readline().removeprefix("saved "))
            time.sleep(random_moment.uniform(0.0, 0.2) if attempt else 0.0)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.returncode == -signal.SIGKILL
        leftovers += sum(atomic.TEMPORARY in entry.name for entry in tmp_path.iterdir())
        checkpoints = Checkpoints(tmp_path)
        checkpoints.claim()
        checkpoints.close()
        assert not any(atomic.TEMPORARY in entry.name for entry in tmp_path.iterdir())
        infos = checkpoints.steps()
        assert all(info.intact for info in infos)
        for info in infos:
            verify_step(info.path)
            restored = checkpoints.restore(info.step, like)
            expected = np.broadcast_to(info.step + np.arange(256) / 256, (512, 256))
            np.testing.assert_array_equal(restored.arrays["params"]["w"], expected)
            assert restored.records == {"step": info.step}
            assert (info.path / "run.toml").read_text() == f"step = {info.step}"
        last = infos[-1].step if infos else 0
        # A save returns only when the one before is on disk.
        assert last >= max(newest, asked - 1), "a kill lost a finished checkpoint"
        newest = last
    assert leftovers > 0, "no kill hit a save: the test shows nothing"
