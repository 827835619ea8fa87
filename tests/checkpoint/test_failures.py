"""Saves that fail for real: full disk, refused writes, a directory gone. Training continues."""

import ctypes
import ctypes.util
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from ziggurat.checkpoint import CheckpointConfig, Checkpoints, verify_step
from ziggurat.core.errors import CheckpointError

SMALL = {"params": {"w": np.ones(2)}}
NOISE = {"params": {"w": np.random.default_rng(0).normal(size=1 << 19).astype(np.float32)}}
AT_ONCE = CheckpointConfig(retries=2, retry_wait_s=0.0)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB of its own."""
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if library.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip(f"mounting a file system: {os.strerror(ctypes.get_errno())}")
    yield disk
    library.umount2(os.fsencode(disk), 2)


@pytest.fixture
def no_large_files():
    """The kernel refuses to let a file grow beyond 1 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(directory) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_a_full_disk_costs_one_checkpoint_and_not_the_run(small_disk, caplog):
    with Checkpoints(small_disk, AT_ONCE) as checkpoints:
        checkpoints.save(1, SMALL, {"step": 1})
        report = checkpoints.save(2, NOISE, {"step": 2})
        with caplog.at_level(logging.ERROR):
            later = checkpoints.save(3, SMALL, {"step": 3})  # does not raise
        assert report.error is not None
        assert "checkpoint step 2: found it could not be written after 3 attempts" in report.error
        assert "No space left" in report.error
        assert (report.attempts, report.total_s, report.bytes) == (3, None, None)
        assert str(checkpoints.last_error) == report.error
        assert checkpoints.failures == 1
        assert [record.getMessage() for record in caplog.records] == [report.error]
        assert "\n" not in report.error
        checkpoints.wait()  # the newest save succeeded
        assert (later.error, later.attempts) == (None, 1)
        assert names(small_disk) == [".lock", "step_00000001", "step_00000003"]
        for info in checkpoints.steps():
            verify_step(info.path)
        assert checkpoints.restore(None, SMALL).records == {"step": 3}


def test_a_retry_meets_a_disk_that_has_room_again(small_disk):
    """The arrays are overwritten meanwhile: the retry writes what was there at the save."""
    (small_disk / "ballast").write_bytes(b"x" * 900_000)
    value = {"params": {"w": np.arange(1 << 16, dtype=np.float32)}}
    with Checkpoints(small_disk, CheckpointConfig(retries=40, retry_wait_s=0.05)) as checkpoints:
        report = checkpoints.save(1, value)
        value["params"]["w"][:] = -1
        timer = threading.Timer(0.3, (small_disk / "ballast").unlink)
        timer.start()
        while timer.is_alive():
            assert report.error is None
        checkpoints.wait()
        timer.join()
        assert report.attempts > 1
        found = checkpoints.restore(None, value).arrays["params"]["w"]
        np.testing.assert_array_equal(found, np.arange(1 << 16))


def test_refused_writes_and_the_end_of_a_run(tmp_path, no_large_files):
    with Checkpoints(tmp_path, AT_ONCE) as checkpoints:
        checkpoints.save(1, SMALL)
        checkpoints.save(2, NOISE)
        checkpoints.wait(strict=False)
        assert checkpoints.failures == 1
        with pytest.raises(CheckpointError, match="step 2: found it could not be written"):
            checkpoints.wait()
        checkpoints.wait()  # raised once
        assert names(tmp_path) == [".lock", "step_00000001"]
        no_large_files()
        checkpoints.save(2, NOISE)
        checkpoints.wait()
        assert [info.step for info in checkpoints.steps()] == [1, 2]


def test_close_tells_that_the_last_save_failed(tmp_path, no_large_files):
    checkpoints = Checkpoints(tmp_path, AT_ONCE)
    checkpoints.save(2, NOISE)
    with pytest.raises(CheckpointError, match="step 2"):
        checkpoints.close()

    def fail_while_saving():
        with Checkpoints(tmp_path, AT_ONCE) as checkpoints:
            checkpoints.save(3, NOISE)
            raise ZeroDivisionError("this error is the one that counts")

    with pytest.raises(ZeroDivisionError):
        fail_while_saving()
    Checkpoints(tmp_path).save(4, SMALL)  # and the directory is free again


def test_synchronous_saves_do_not_raise_either(tmp_path, no_large_files):
    config = CheckpointConfig(asynchronous=False, retries=0)
    with Checkpoints(tmp_path, config) as checkpoints:
        assert "could not be written (" in (checkpoints.save(1, NOISE).error or "")
        assert checkpoints.save(2, SMALL).error is None


def test_a_directory_that_vanishes_is_made_again(tmp_path):
    run = tmp_path / "run"
    with Checkpoints(run, AT_ONCE) as checkpoints:
        checkpoints.save(1, SMALL)
        checkpoints.wait()
        shutil.rmtree(run)
        assert checkpoints.latest() is None
        checkpoints.save(2, SMALL)
        checkpoints.wait()
        assert [info.step for info in checkpoints.steps()] == [2]
        second = Checkpoints(run, AT_ONCE)
        with second._lock.if_free() as free:
            assert not free, "the lock is that of the new directory"


def test_a_directory_replaced_by_a_file_and_put_back(tmp_path):
    run, kept = tmp_path / "run", tmp_path / "kept"
    with Checkpoints(run, AT_ONCE) as checkpoints:
        checkpoints.save(1, SMALL)
        checkpoints.wait()
        run.rename(kept)
        run.write_text("in the way")
        report = checkpoints.save(2, SMALL)
        checkpoints.wait(strict=False)
        assert "exists" in (report.error or "") or "Not a directory" in (report.error or "")
        assert run.read_text() == "in the way"
        run.unlink()
        kept.rename(run)
        checkpoints.save(3, SMALL)
        checkpoints.wait()
        assert [info.step for info in checkpoints.steps()] == [1, 3]
        assert checkpoints.failures == 1


def test_one_save_in_flight_and_the_wait_is_reported(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=9)) as checkpoints:
        reports = [checkpoints.save(step, NOISE) for step in (1, 2, 3)]
        assert [report.total_s is not None for report in reports] == [True, True, False]
        for report in reports:
            assert 0 <= report.waited_s <= report.blocking_s
        checkpoints.wait()
        assert reports[1].waited_s > 0
        assert [info.step for info in checkpoints.steps()] == [1, 2, 3]


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from ziggurat.checkpoint import CheckpointConfig, Checkpoints

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

size = 1 << 26
tree = {"params": {f"w{i}": np.full(size // 16, i, np.float32) for i in range(4)}}  # 64 MB
with Checkpoints(Path(sys.argv[1]), CheckpointConfig(keep_last=1)) as checkpoints:
    checkpoints.save(0, {"params": {"w": np.ones(1 << 16)}})
    checkpoints.wait()
    before = peak()
    for step in range(1, 6):
        checkpoints.save(step, tree)
    checkpoints.wait()
    print(peak() - before)
"""


def test_the_host_holds_one_copy_whatever_is_asked(tmp_path):
    """Five saves of 64 MB, each asked for while the one before is being written."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    grown = float(done.stdout)
    assert 40 < grown < 120, grown
