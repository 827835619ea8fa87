"""SIGKILL at the first start of a run, between any two changes of its files.

A child process counts what it does to the file system below the run's output (Python's audit
events) and kills itself before change number ``n``. Whatever that leaves, the next start ends as an
undisturbed run does, and before a step was recorded other settings are taken.
"""

import os
import signal
import sys

import pytest
from tests.train.runs import TEXT

CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.symlink")
STEPS = 2
CHILD = 60.0


def start(folder, name, *overrides, kill_at=None) -> int:
    """Train in a forked child; returns its exit code, minus the signal that ended it."""
    pid = os.fork()
    if not pid:
        code = 70
        try:
            log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = train(folder, name, overrides, kill_at)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(folder, name, overrides, kill_at) -> int:
    import jax

    from ziggurat.cli.main import main

    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    output, done = str(folder / "runs"), 0

    def count(event, args):
        nonlocal done
        if event not in CHANGES or not args or output not in str(args[0]):
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        done += 1
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    file = folder / "tiny.toml"
    fixed = (f"--set=name={name}", f"--set=output={output}", f"--train.steps={STEPS}")
    code = main(["train", str(file), *fixed, "--checkpoint.every=1", *overrides])
    (folder / "changes").write_text(str(done))
    return code


def losses(folder, name):
    from ziggurat.train.metrics import read_metrics

    rows = read_metrics(folder / "runs" / name / "metrics.jsonl")
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything imported here and no device touched, so that children can be forked."""
    import ziggurat.cli.train
    import ziggurat.models.pretrained
    import ziggurat.train.loop
    import ziggurat.train.summary

    assert ziggurat.cli.train, (ziggurat.models.pretrained, ziggurat.train.loop)
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
