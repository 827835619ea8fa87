"""Two JAX processes save one sharded tree together and restore it; then one process reads it."""

import subprocess
import sys

import numpy as np
import pytest
from tests.free_port import free_port

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
from ziggurat.checkpoint.tiers import Tiers

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

# The disk alone: what one of them found is what all restore, or one would begin anew.
tiers = Tiers(directory, CheckpointConfig(keep_last=2))
assert tiers.latest() == (3, "disk"), tiers.latest()
assert tiers.restore(None, {"params": like}).step == 3
tiers.close()
print("done", flush=True)
"""


FAILURES = """
import logging, os, resource, signal, sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
directory, port, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
from ziggurat.checkpoint import CheckpointConfig, Checkpoints, DamagedError
from ziggurat.core.errors import CheckpointError

jax.distributed.initialize(f"localhost:{port}", 2, rank)
sharding = NamedSharding(jax.make_mesh((2,), ("x",)), P("x"))
values = np.random.default_rng(0).normal(size=1 << 19).astype(np.float32)

def tree(step, size=1 << 10):
    part = values[:size] * step
    return {"params": {"w": jax.make_array_from_callback((size,), sharding, lambda at: part[at])}}

like = {"params": {"w": jax.ShapeDtypeStruct((1 << 10,), np.float32, sharding=sharding)}}
said = []

def error_of(call, *arguments):
    try:
        call(*arguments)
    except CheckpointError as error:
        said.append(str(error).replace(str(directory), "RUN"))
        return error
    raise AssertionError("no error")

checkpoints = Checkpoints(directory, CheckpointConfig(keep_last=9, retries=1, retry_wait_s=0.0))
for step in (1, 2):
    checkpoints.save(step, tree(step), {"step": step})
checkpoints.wait()

# Process 1 cannot write: both give the step up, both continue.
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
if rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limit[1]))
report = checkpoints.save(3, tree(3, 1 << 19), {"step": 3})
error_of(checkpoints.wait)
assert (checkpoints.failures, report.attempts) == (1, 2), report
if rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
assert [info.step for info in checkpoints.steps()] == [1, 2]
checkpoints.save(3, tree(3), {"step": 3})
checkpoints.wait()

# What process 0 refuses, all are told; so are they of a leaf that only process 1 cannot store.
error_of(checkpoints.save, 3, tree(3))
error_of(checkpoints.save, 4, {"params": {"w": np.ones(2) if rank == 0 else "text"}})

# Each verifies its share: the same files are named to both, and both take the step before.
for name in ("records.json", "arrays/params/_METADATA"):
    path = directory / "step_00000003" / name
    if rank == 0:
        before = path.read_bytes()
        path.write_bytes(before[:-1] + b"?")
    checkpoints._processes.barrier("damaged")
    damaged = error_of(checkpoints.restore, 3, like)
    assert isinstance(damaged, DamagedError) and name in damaged.files, damaged.files
    restored = checkpoints.restore(None, like)
    assert (restored.step, restored.records) == (2, {"step": 2})
    if rank == 0:
        (aside,) = directory.glob("step_00000003.damaged-*")
        (aside / name).write_bytes(before)
        aside.rename(directory / "step_00000003")
    checkpoints._damaged.clear()
    checkpoints._processes.barrier("mended")
    assert checkpoints.restore(None, like).step == 3
checkpoints.close()
print(*said, sep="\\n", flush=True)
"""


def run_two(program: str, directory) -> list[str]:
    """What two processes print."""
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(directory), port, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
        )
        for rank in range(2)
    ]
    try:
        answers = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], answers
    return [output for output, _ in answers]


@pytest.mark.slow
def test_two_processes(tmp_path):
    outputs = run_two(WORKER, tmp_path / "run")
    assert [output.splitlines()[-1:] for output in outputs] == [["done"], ["done"]], outputs
    step = tmp_path / "run" / "step_00000003"
    assert verify_step(step).step == 3
    expected = np.arange(64, dtype=np.float32).reshape(8, 8) * 3
    np.testing.assert_array_equal(read_arrays(step, "params")["w"], expected)


@pytest.mark.slow
def test_two_processes_fail_and_recover_together(tmp_path):
    first, second = (output.splitlines() for output in run_two(FAILURES, tmp_path / "run"))
    assert first == second
    assert len(first) == 5, first
    parts = [
        "could not be written after 2 attempts (process 1: File too large)",
        "process 0: checkpoint RUN/step_00000003: found an intact checkpoint of this step",
        "process 1: checkpoint item params: leaf w: found a str",
        "records.json",
        "_METADATA",
    ]
    for line, part in zip(first, parts, strict=True):
        assert part in line, line
