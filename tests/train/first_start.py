"""A first start of a run that kills itself before a given change of its files.

The parent of these children is multiprocessing's fork server: it imports everything once and starts
no thread. Forking the test process itself hangs as soon as an earlier test has started JAX there.
"""

import os
import signal
import sys

import ziggurat.cli.train
import ziggurat.models.loading.pretrained
import ziggurat.train.loop
import ziggurat.train.summary

IMPORTED = (
    ziggurat.cli.train,
    ziggurat.models.loading.pretrained,
    ziggurat.train.loop,
    ziggurat.train.summary,
)
CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.symlink")
STEPS = 2


def run(folder, name, overrides, kill_at) -> None:
    """Train with this process's output in ``name.log``; the process ends with the exit code."""
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.exit(train(folder, name, overrides, kill_at))


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
