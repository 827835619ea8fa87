"""All tiers together: which one a restore comes from, and what happens when one is gone."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tests.free_port import free_port

from ziggurat.checkpoint import CheckpointConfig, Checkpoints, writer_lock
from ziggurat.checkpoint.config import MemoryTier, PersistentTier
from ziggurat.checkpoint.copies import Copies
from ziggurat.checkpoint.copy_tier import CopyTier
from ziggurat.checkpoint.identity import run_identity
from ziggurat.checkpoint.memory.tier import MemorySnapshots
from ziggurat.checkpoint.object_store import ObjectStore
from ziggurat.checkpoint.tiers import Newest, Tiers
from ziggurat.core.errors import CheckpointError, ConfigError
from ziggurat.mesh import Processes

LIKE = {"params": {"w": jax.ShapeDtypeStruct((8, 4), np.float32)}}


def arrays(step):
    return {"params": {"w": jax.numpy.full((8, 4), step, np.float32)}}


def opened(tmp_path, identity="run", **more) -> Tiers:
    config = CheckpointConfig(
        every=2,
        keep_last=2,
        memory=MemoryTier(linger_s=60.0),
        persistent=PersistentTier(url=str(tmp_path / "store"), every=4, keep_last=1),
        retries=0,
    )
    return Tiers(tmp_path / "run", config, identity=identity, **more)


def copies(tiers) -> Copies:
    assert tiers["persistent"].copies is not None
    return tiers["persistent"].copies


def memory(tiers) -> Any:
    assert isinstance(tiers["memory"], MemorySnapshots)
    return tiers["memory"]


def train(tiers, first, last):
    for step in range(first, last + 1):
        assert tiers.due(step)
        tiers.save(step, arrays(step), {"step": step}, {"run.toml": b"x"})
    tiers.wait()
    copies(tiers).wait()


def assert_restores(tiers, step, tier, asked=None):
    found = tiers.restore(asked, LIKE)
    assert (found.step, found.tier, found.records) == (step, tier, {"step": step})
    np.testing.assert_array_equal(found.arrays["params"]["w"], np.full((8, 4), step))
    assert found.seconds > 0


def test_without_other_tiers_it_is_checkpoints(tmp_path, private):
    with Tiers(tmp_path / "run", CheckpointConfig(every=2, keep_last=2)) as tiers:
        assert tiers.latest() is None
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            tiers.restore(None, LIKE)
        for step in range(1, 7):
            assert tiers.due(step) == (step % 2 == 0)
            if tiers.due(step):
                report = tiers.save(step, arrays(step), {"step": step}, metrics={"loss": 1.0})
                assert report.tiers.keys() == {"disk"}
                assert 0 < report.tiers["disk"] <= report.blocking_s
        tiers.wait()
        assert [(info.step, info.metrics) for info in tiers.steps()] == [
            (4, {"loss": 1.0}),
            (6, {"loss": 1.0}),
        ]
        assert tiers.latest() == Newest(6, "disk")
        assert_restores(tiers, 6, "disk")
        assert_restores(tiers, 4, "disk", 4)
        with pytest.raises(CheckpointError, match="expected one of 4, 6"):
            tiers.restore(5, LIKE)
        assert tiers.discard_after(4) == [6]
        report = tiers.save(5, arrays(5), {"step": 5}, final=True)  # though it is not due
        assert [info.step for info in tiers.steps()] == [4, 5]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "step_00000004",
        "step_00000005",
        ".lock",
    }
    assert list(private.iterdir()) == []


def test_the_newest_of_all_tiers(tmp_path, private):
    tiers = opened(tmp_path)
    assert tiers.latest() is None
    train(tiers, 1, 7)
    assert copies(tiers).steps() == [4]
    tiers.close(finished=False)

    tiers = opened(tmp_path)
    assert tiers._candidates() == [
        Newest(7, "memory"),
        Newest(6, "memory"),
        Newest(6, "disk"),
        Newest(4, "disk"),
        Newest(4, "persistent"),
    ]
    assert_restores(tiers, 7, "memory")
    assert_restores(tiers, 6, "memory", 6)
    assert_restores(tiers, 4, "disk", 4)
    assert tiers.discard_after(6) == [7]
    assert tiers.latest() == Newest(6, "memory")
    train(tiers, 7, 7)
    tiers.close(finished=True)  # memory is newer than the disk: it stays
    assert list(private.iterdir())
    tiers = opened(tmp_path)
    assert_restores(tiers, 7, "memory")
    report = tiers.save(8, arrays(8), {"step": 8}, final=True)
    assert report.tiers.keys() == {"disk", "persistent"}
    again = tiers.save(8, arrays(8), {"step": 8}, final=True)  # is there already
    assert again.tiers.keys() == {"persistent"}
    tiers.close(finished=True)
    assert list(private.iterdir()) == []
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["step_00000008"]


def test_a_damaged_tier_falls_to_the_next(tmp_path, private, caplog):
    tiers = opened(tmp_path)
    train(tiers, 1, 9)
    for step in (9, 8):
        _, content = memory(tiers)._link.ask("read", owner=0, step=step)
        assert content is not None
        content[5] ^= 1
    with caplog.at_level(logging.WARNING):
        assert_restores(tiers, 8, "disk")
    assert "step 9 in tier memory cannot be used" in caplog.text
    files = [path for path in (tmp_path / "run/step_00000008/arrays").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    assert_restores(tiers, 8, "persistent")
    assert tiers.disk.checkpoints.latest() is not None
    assert_restores(tiers, 8, "disk")  # it is mended
    tiers.discard_after(8)
    tiers.close(finished=True)
    assert list(private.iterdir()) == []


def test_a_new_machine_starts_from_the_store(tmp_path, private):
    with opened(tmp_path) as tiers:
        train(tiers, 1, 8)
    shutil.rmtree(tmp_path / "run")

    def refuse(path):
        assert (path / "run.toml").read_bytes() == b"x"
        raise ConfigError("another run")

    with opened(tmp_path, "new", accept=refuse) as tiers, pytest.raises(ConfigError):
        tiers.restore(None, LIKE)
    with opened(tmp_path, "new") as tiers:
        assert tiers.disk.checkpoints.latest() is None
        assert_restores(tiers, 8, "persistent")
        assert [info.step for info in tiers.steps()] == [8]
        train(tiers, 9, 10)


def test_several_stores_of_a_kind(tmp_path):
    """Each tier of the list has its own interval and retention, and any of them restores."""
    store = [
        PersistentTier(url=str(tmp_path / name), every=every, keep_last=2)
        for name, every in (("near", 2), ("far", 4))
    ]
    config = CheckpointConfig(every=2, keep_last=1, tiers=(*store,))
    with Tiers(tmp_path / "run", config) as tiers:
        for step in (2, 4, 6):
            report = tiers.save(step, arrays(step), {"step": step}, final=step == 6)
            assert report.tiers.keys() == {
                "disk",
                "store",
                *(["store-2"] if step > 2 else []),
            }
            for tier in tiers.tiers:  # a newer copy would take the place of one that waits
                if isinstance(tier, CopyTier) and tier.copies is not None:
                    tier.copies.wait()
        tiers.close(finished=True)
    shutil.rmtree(tmp_path / "run")
    with Tiers(tmp_path / "run", config) as tiers:
        assert tiers._candidates() == [
            Newest(6, "store"),
            Newest(6, "store-2"),
            Newest(4, "store"),
            Newest(4, "store-2"),
        ]
        (tmp_path / "near/step_00000006/records.json").write_text("{}")
        assert_restores(tiers, 6, "store-2")
        assert tiers.discard_after(4) == [6]  # of the disk; what stores have is theirs to know
        assert tiers.latest() == Newest(4, "store")


@pytest.mark.slow
def test_one_silent_tier_is_no_fresh_start(tmp_path, monkeypatch):
    def silent(store):
        raise OSError("no answer")

    monkeypatch.setattr(ObjectStore, "steps", silent)
    config = CheckpointConfig(every=2, tiers=(PersistentTier(url=str(tmp_path / "x"), every=2),))
    with Tiers(tmp_path / "run", config) as tiers:
        with pytest.raises(CheckpointError, match="no answer"):
            tiers.latest()
        tiers.save(2, arrays(2), {"step": 2}, final=True)
        assert tiers.latest() == Newest(2, "disk")  # the others are enough


def test_memory_of_another_run_is_forgotten(tmp_path, private):
    config = CheckpointConfig(every=2, memory=MemoryTier())
    with pytest.raises(CheckpointError, match="no identity"):
        Tiers(tmp_path / "run", config)
    for step in (1, 2, 3):
        tiers = Tiers(tmp_path / "run", config, identity="same")
        assert tiers.latest() is None, "the directory is new: so is the run"
        tiers.save(1, arrays(step), {})
        tiers.close(finished=False)
        shutil.rmtree(tmp_path / "run")


def test_training_goes_on_without_keeper_and_store(tmp_path, private, monkeypatch):
    tiers = opened(tmp_path)
    train(tiers, 1, 3)
    (tmp_path / "store").mkdir(exist_ok=True)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("in the way")
    monkeypatch.setattr("ziggurat.checkpoint.memory.peer._start", lambda *_: False)
    os.kill(memory(tiers).keeper, signal.SIGKILL)
    train(tiers, 4, 4)
    assert tiers.problems.keys() == {"memory", "persistent"}
    tiers.close(finished=False)
    tiers = opened(tmp_path)
    (tmp_path / "store").unlink()
    assert_restores(tiers, 4, "disk")
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train(tiers, 5, 8)
    assert tiers.problems == {}
    assert copies(tiers).steps() == [8]
    tiers.close(finished=True)


def test_a_sweep_beside_it_leaves_the_name_that_is_being_drawn(tmp_path, private, monkeypatch):
    """Another process that begins removes what killed writers left, but nothing of a living one."""
    real, drawn = os.replace, []

    def while_others_begin(source, target):
        with pytest.raises(CheckpointError, match="another process"):
            Checkpoints(tmp_path / "run").claim()
        drawn.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(writer_lock, "PATIENCE_S", 0.05)
    monkeypatch.setattr(os, "replace", while_others_begin)
    config = CheckpointConfig(memory=MemoryTier(linger_s=5.0))
    with Tiers(tmp_path / "run", config, identity="run") as tiers:
        assert tiers.latest() is None
    assert drawn == [".identity"]


WORKER = """
import os, shutil, signal, sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from ziggurat.mesh import Processes, join
from ziggurat.checkpoint import CheckpointConfig
from ziggurat.checkpoint.config import MemoryTier, PersistentTier
from ziggurat.checkpoint.tiers import Tiers

place, port, rank, phase = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
jax.config.update("jax_num_cpu_devices", 2)
join(f"localhost:{port}", 2, rank)
all = Processes()
mesh = jax.make_mesh((4,), ("x",))
values = np.arange(64, dtype=np.float32).reshape(8, 8)
placed = {"w": NamedSharding(mesh, P("x")), "b": NamedSharding(mesh, P())}

def tree(step):
    return {name: jax.make_array_from_callback((8, 8), sharding, lambda at: (values * step)[at])
            for name, sharding in placed.items()}

def check(step, tier, placed=placed):
    like = {name: jax.ShapeDtypeStruct((8, 8), np.float32, sharding=sharding)
            for name, sharding in placed.items()}
    found = tiers.restore(None, {"params": like})
    assert (found.step, found.tier, found.records) == (step, tier, {"step": step}), found
    for name, leaf in found.arrays["params"].items():
        assert leaf.sharding == placed[name]
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, (values * step)[shard.index])

config = CheckpointConfig(every=2, memory=MemoryTier(linger_s=60.0),
                          persistent=PersistentTier(url=str(place / "store"), every=2))
tiers = Tiers(place / "run", config, identity="run", processes=all)
if phase == "train":
    assert tiers.latest() is None
    for step in (1, 2, 3):
        tiers.save(step, {"params": tree(step)}, {"step": step})
    tiers.wait()
    if tiers["persistent"].copies:
        tiers["persistent"].copies.wait()
    assert tiers.problems == {}, tiers.problems
    all.barrier("trained")
    print(tiers["memory"].keeper, flush=True)
    sys.stdin.read()  # until it is killed
else:
    assert (tiers["memory"].keeper is None) == (rank == 1)  # one host lost its keeper
    check(3, "memory")
    other = NamedSharding(mesh, P(None, "x"))
    check(2, "disk", {"w": other, "b": other})  # another layout needs all parts
    check(3, "memory")
    tiers.save(4, {"params": tree(4)}, {"step": 4})
    tiers.wait()
    assert tiers.problems == {}, tiers.problems
    assert tiers.discard_after(3) == [4]
    tiers.save(5, {"params": tree(5)}, {"step": 5})
    tiers.wait()
    check(5, "memory")
    if rank == 0:
        os.kill(tiers["memory"].keeper, signal.SIGKILL)
        (place / "run/step_00000002/manifest.json").write_text("{")
    all.barrier("killed")
    check(5, "memory")  # part 0 is with the keeper of process 1
    tiers.discard_after(4)
    check(2, "persistent")
    all.barrier("end")
    tiers.close(finished=True)
    print("done", flush=True)
"""


def pair(tmp_path, phase):
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), port, str(rank), phase],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        )
        for rank in range(2)
    ]


@pytest.mark.chaos
def test_a_lost_host_comes_back_from_its_neighbour(tmp_path, private):
    trainers = pair(tmp_path, "train")
    try:
        keepers = [trainer.stdout.readline() for trainer in trainers]  # pyright: ignore
        assert all(keepers), [trainer.communicate()[1] for trainer in trainers]
        os.kill(int(keepers[1]), signal.SIGKILL)
    finally:
        for trainer in reversed(trainers):
            trainer.kill()
            trainer.communicate()
    trainers = pair(tmp_path, "resume")
    try:
        outputs = [trainer.communicate(timeout=120) for trainer in trainers]
    finally:
        for trainer in trainers:
            trainer.kill()
    assert [out for out, _ in outputs] == ["done\n", "done\n"], outputs
    assert Checkpoints(tmp_path / "run").latest() is not None


class Several(Processes):
    """As many processes as a test says."""

    def __init__(self, count):
        super().__init__()
        self.number = count

    @property
    def count(self):
        return self.number

    def once(self, name, call):
        return call()


def test_another_number_of_processes_is_another_course(tmp_path):
    """Snapshots of two processes say nothing of a run that one process continued with."""

    def name(count):
        return run_identity(tmp_path, "run", Several(count), lambda: None)

    first = name(2)
    assert name(2) == first  # they were killed, and start again
    alone = name(1)
    assert alone != first
    assert name(1) == alone
    assert name(2) not in (first, alone)
