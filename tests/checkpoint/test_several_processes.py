"""Two JAX processes save one sharded tree together and restore it; then one process reads it."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from ziggurat.checkpoint import read_arrays, verify_step

WORKER = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
directory, port, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
from ziggurat.checkpoint import CheckpointConfig, Checkpoints

with Checkpoints(directory, CheckpointConfig(keep_last=2)) as checkpoints:
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    mesh = jax.make_mesh((4,), ("x",))
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    sharded, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())

    def place(step, sharding):
        return jax.make_array_from_callback((8, 8), sharding, lambda at: (values * step)[at])

    for step in (1, 2, 3):
        tree = {"w": place(step, sharded), "b": place(step, whole)}
        checkpoints.save(step, {"params": tree}, {"step": step}, {"run.toml": b"x"})
    checkpoints.wait()
    assert [info.step for info in checkpoints.steps()] == [2, 3]
    other = NamedSharding(mesh, P(None, "x"))
    like = {"w": jax.ShapeDtypeStruct((8, 8), np.float32, sharding=other),
            "b": jax.ShapeDtypeStruct((8, 8), np.float32, sharding=sharded)}
    restored = checkpoints.restore(None, {"params": like})
    assert restored.records == {"step": 3}
    for name, leaf in restored.arrays["params"].items():
        assert leaf.sharding == like[name].sharding
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, (values * 3)[shard.index])
print("done", flush=True)
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "run"), port, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [output.splitlines()[-1:] for output in outputs] == [["done"], ["done"]], outputs
    step = tmp_path / "run" / "step_00000003"
    assert verify_step(step).step == 3
    expected = np.arange(64, dtype=np.float32).reshape(8, 8) * 3
    np.testing.assert_array_equal(read_arrays(step, "params")["w"], expected)
