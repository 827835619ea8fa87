"""Worker processes: the batches are those of a plain loop, whatever happens to the workers."""

import dataclasses
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import psutil
import pytest

from ziggurat.core.errors import ConfigError, DataError
from ziggurat.data import workers

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Batches that depend on the step, the row and nothing else, and steps that go wrong."""

    fatal: int = -1
    """The step that kills the process that makes it."""
    once: str = ""
    """A file whose absence makes ``fatal`` harmless."""
    hangs: int = -1
    raises: int = -1
    error: str = "config"
    changes: int = -1
    pause_s: float = 0.0

    def batch(self, step, rows=None):
        time.sleep(self.pause_s)
        if step == self.fatal and (not self.once or Path(self.once).exists()):
            if self.once:
                Path(self.once).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.hangs:
            time.sleep(1000)
        if step == self.raises and self.error == "config":
            raise ConfigError("data.sources", found="nothing", expected="something", fix="do it")
        if step == self.raises:
            raise ValueError("two\nlines")
        generator = np.random.default_rng(step)
        part = rows or slice(0, 6)
        tokens = generator.integers(0, 1 << 30, (6, 7 + (step == self.changes)), np.int32)[part]
        return {"tokens": tokens, "mask": (tokens % 3).astype(np.float32), "step": np.array(step)}


def check(found, first, dataset, rows=None):
    """All of ``found`` is what the plain loop gives from step ``first`` on."""
    for step, batch in enumerate(found, first):
        expected = Numbers().batch(step, rows)
        assert batch.keys() == expected.keys()
        for name, values in expected.items():
            assert batch[name].dtype == values.dtype
            np.testing.assert_array_equal(batch[name], values)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_is_left():
    shared, files = set(os.listdir("/dev/shm")), open_files()
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
    assert not left
    assert open_files() == files
    ours = [name for name in set(os.listdir("/dev/shm")) - shared if "ziggurat" in name]
    assert not ours


def children(but: Collection[psutil.Process] = ()) -> list[psutil.Process]:
    """Children of this process, oldest first; other tests of it may have left some of their own."""
    found = (child for child in psutil.Process().children() if child not in but)
    return sorted(found, key=lambda child: child.pid)


def test_the_batches_of_a_plain_loop_in_order_and_to_keep():
    rows = slice(2, 5)
    found = list(workers.batches(Numbers(), rows, 3, 40, processes=2, ahead=3))
    assert len(found) == 37
    check(found, 3, Numbers(), rows)
    found[0]["tokens"][:] = 0  # the caller's own


@pytest.mark.parametrize(("start", "stop", "steps"), [(4, 4, 0), (9, 4, 0), (4, 5, 1), (4, 6, 2)])
def test_ranges(start, stop, steps):
    found = list(workers.batches(Numbers(), None, start, stop, processes=3))
    assert len(found) == steps
    check(found, start, Numbers())


def test_workers_begin_with_the_first_batch_hold_so_many_ahead_and_end_with_close():
    before = set(children())  # other tests of this process may have some of their own
    endless = workers.batches(Numbers(), None, 0, processes=2, ahead=3)
    assert not set(children()) - before
    check(itertools.islice(endless, 5), 0, Numbers())
    assert len(set(children()) - before) == 2
    assert endless.gi_frame.f_locals["pool"]._next == 5 + 2 * 3
    endless.close()
    assert not set(children()) - before


@pytest.mark.chaos
def test_killed_and_stopped_workers_change_nothing(caplog):
    found, others = [], children()
    stream = workers.batches(Numbers(pause_s=0.01), None, 0, 60, processes=2, patience_s=1.5)
    with caplog.at_level(logging.WARNING):
        for step, batch in enumerate(stream):
            found.append(batch)
            if step in (5, 20):
                children(others)[step % 2].kill()
            if step == 35:
                children(others)[0].send_signal(signal.SIGSTOP)
    assert len(found) == 60
    check(found, 0, Numbers())
    said = [record.getMessage() for record in caplog.records]
    assert sum("was ended by SIGKILL" in line for line in said) >= 2
    assert sum("did not answer within 1.5 s, at step " in line for line in said) >= 1


@pytest.mark.chaos
def test_a_step_that_kills_its_worker_once_is_made_by_another(tmp_path, caplog):
    trap = tmp_path / "trap"
    trap.touch()
    stream = workers.batches(Numbers(fatal=7, once=str(trap)), None, 0, 20, processes=1)
    with caplog.at_level(logging.WARNING):
        found = list(stream)
    assert len(found) == 20
    check(found, 0, Numbers())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "was ended by SIGKILL, at step 7; replaced, attempt 1 of 3" in line


@pytest.mark.chaos
def test_a_step_that_kills_every_worker_is_named(caplog):
    stream = workers.batches(Numbers(fatal=7), None, 4, processes=1)
    check(itertools.islice(stream, 3), 4, Numbers())
    with pytest.raises(DataError, match="batch of step 7: found 3 worker processes failed at it"):
        next(stream)
    assert len(caplog.records) == 3


@pytest.mark.chaos
def test_a_step_that_hangs_is_named(monkeypatch):
    monkeypatch.setattr(workers, "ATTEMPTS", 1)
    stream = workers.batches(Numbers(hangs=2), None, 1, processes=1, patience_s=0.3)
    next(stream)
    with pytest.raises(DataError, match=r"step 2: .*did not answer within 0.3 s; expected a batch"):
        next(stream)


def test_errors_come_back_in_their_place_and_are_not_tried_again(caplog):
    stream = workers.batches(Numbers(raises=6), None, 0, processes=1)
    check(itertools.islice(stream, 6), 0, Numbers())
    with pytest.raises(ConfigError) as caught:
        next(stream)
    assert str(caught.value) == "data.sources: found nothing; expected something; do it"
    assert caught.value.fix == "do it"
    assert "in batch" in caught.value.__notes__[0]
    with pytest.raises(StopIteration):
        next(stream)
    assert not caplog.records


def test_an_exception_of_another_kind_is_one_line():
    stream = workers.batches(Numbers(raises=1, error="value"), None, 0, processes=1)
    next(stream)
    with pytest.raises(DataError) as caught:
        next(stream)
    assert str(caught.value).startswith("batch of step 1: found ValueError: two lines (test_work")


def test_the_first_batch_fails_here():
    with pytest.raises(ValueError, match="two"):
        next(workers.batches(Numbers(raises=0, error="value"), None, 0, processes=1))


def test_a_batch_of_another_shape_is_refused():
    stream = workers.batches(Numbers(changes=2), None, 0, processes=1)
    check(itertools.islice(stream, 2), 0, Numbers())
    with pytest.raises(
        DataError, match=r"batch of step 2: found .*\(6, 8\).*; expected the arrays"
    ):
        next(stream)


class Unloadable(Numbers):
    def __setstate__(self, state):
        raise OSError("the store is gone")


def test_a_data_set_that_cannot_be_loaded_says_so():
    stream = workers.batches(Unloadable(), None, 0, processes=1)
    next(stream)
    with pytest.raises(DataError, match="data set in a worker process: found OSError: the store"):
        next(stream)


@pytest.mark.parametrize("name", ["processes", "ahead"])
def test_settings(name):
    with pytest.raises(ValueError, match=f"{name}: found 0"):
        workers.batches(Numbers(), None, 0, **({"processes": 1} | {name: 0}))


PARENT = """
import os, sys, time
from tests.data.test_workers import Numbers
from ziggurat.data import workers
import psutil
stream = workers.batches(Numbers(), None, 0, processes=1)
for _ in range(6):
    next(stream)
print(*(child.pid for child in psutil.Process().children()), flush=True)
{end}
"""


@pytest.mark.chaos
@pytest.mark.parametrize("end", ["killed", "returns", "killed, its worker stopped"])
def test_workers_end_with_their_parent_however_it_ends(end):
    """A script without a ``__main__`` guard, too."""
    last = "" if end == "returns" else "time.sleep(1000)"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(end=last)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout
        (pid,) = map(int, parent.stdout.readline().split())
        if "stopped" in end:
            os.kill(pid, signal.SIGSTOP)
        if "killed" in end:
            parent.kill()
        assert (parent.wait() == 0) == (end == "returns")
    deadline = time.monotonic() + 30
    while not _ended(pid):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.02)


def _ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for somebody to ask for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_worker_imports_no_jax():
    code = (
        "import sys; from ziggurat.data import worker_process\n"
        "print([name for name in ('jax', 'grain', 'pyarrow', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
