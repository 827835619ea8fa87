"""SIGKILL at the first start of a run, between any two changes of its files.

A child process counts what it does to the file system below the run's output (Python's audit
events) and kills itself before change number ``n``. Whatever that leaves, the next start ends as an
undisturbed run does, and before a step was recorded other settings are taken.
"""

import multiprocessing
import os
import signal

import pytest
from tests.train import first_start
from tests.train.runs import TEXT

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.train.first_start"])


def start(folder, name, *overrides, kill_at=None) -> int:
    """Train in a child process; returns its exit code, minus the signal that ended it."""
    child = FORKS.Process(target=first_start.run, args=(folder, name, overrides, kill_at))
    child.start()
    child.join()
    return child.exitcode


def losses(folder, name):
    from ziggurat.train.metrics import read_metrics

    rows = read_metrics(folder / "runs" / name / "metrics.jsonl")
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("killed")
    (made / "tiny.toml").write_text(TEXT)
    return made


@pytest.mark.chaos
@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_last_good_state(folder):
    import shutil

    from ziggurat.checkpoint import verify_step
    from ziggurat.core import config
    from ziggurat.core.errors import ConfigError
    from ziggurat.train.config import RunConfig
    from ziggurat.train.run_directory import RunDirectory

    assert start(folder, "peace") == 0, (folder / "peace.log").read_text()[-3000:]
    changes, expected = int((folder / "changes").read_text()), losses(folder, "peace")
    assert changes > 30
    shutil.rmtree(folder / "runs")
    other = config.parse(RunConfig, TEXT, ["optimizer.lr=0.5", f"output={folder / 'runs'}"])
    # two starts for each place: four places in the suite, all with ZIGGURAT_KILLS=1000
    kills = int(os.environ.get("ZIGGURAT_KILLS", "4"))
    stride = max(1, changes // kills)
    locked = 0
    for at in range(stride // 2 + 1, changes + 1, stride):
        name = f"killed-{at}"
        assert start(folder, name, kill_at=at) == -signal.SIGKILL, at
        run = folder / "runs" / name
        directory = RunDirectory(run)
        for step in run.glob("checkpoints/step_????????"):
            verify_step(step)
        if directory.has_steps():
            locked += directory.run_file.exists()
            with pytest.raises(ConfigError):
                directory.check(other)
        else:
            directory.check(other)
        assert start(folder, name) == 0, (at, (folder / f"{name}.log").read_text()[-3000:])
        assert losses(folder, name) == expected, at
        shutil.rmtree(folder / "runs")
    assert locked > 0
