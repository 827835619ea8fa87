"""Kills real training runs at random instants, again and again, and counts what was lost.

``python -m tests.train.chaos --kills 100 --processes 2`` trains a tiny model under SIGKILL, in runs
of 25 kills each. Every run is then finished in peace and compared with one that nobody disturbed:
parameters and optimizer byte by byte, every loss, and the digest of every batch that any attempt
put on a device. After each kill every checkpoint that is listed is read and compared with its
digests. The tally is printed and, with ``--tally FILE``, added to that file.

Processes are forked from this one, which has imported everything and touched no device: a kill
costs two seconds instead of six.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.compilation import QUICK

KILLS_A_RUN = 25
STEPS_A_KILL = 8
RUN = """
seed = 3
[model]
kind = "llama"
vocab_size = 288
d_model = 32
n_layers = 2
n_heads = 4
n_kv_heads = 2
d_ff = 64
[tokenizer]
kind = "bytes"
[data]
sequence_length = 64
batch_size = 8
packing.kind = "first_fit"
filter.max_tokens = 20000
dedup.exact = true
mixture.weights = { code = 0.6, prose = 0.4 }
[[data.mixture.schedule]]
step = 50
weights = { code = 0.2, prose = 0.8 }
[[data.sources]]
name = "code"
kind = "text"
path = "{stdlib}/json"
glob = "*.py"
[[data.sources]]
name = "prose"
kind = "text"
path = "{stdlib}/email"
glob = "*.py"
[optimizer]
kind = "adamw"
lr = 1e-2
[checkpoint]
every = 3
[report]
tensorboard = false
"""
TIERS = {
    "disk": "",
    "memory": "[checkpoint.memory]\nevery = 1\nlinger_s = 20\n",
    "memory and store": "[checkpoint.memory]\nevery = 2\nlinger_s = 20\n"
    '[checkpoint.persistent]\nurl = "store"\nevery = 6\n',
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tally", type=Path)
    given = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
    _import_all()
    tally = Counter[str]()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        number = 0
        while tally["kills"] < given.kills:
            number += 1
            wanted = min(KILLS_A_RUN, given.kills - tally["kills"])
            tiers = list(TIERS)[(number + given.seed) % len(TIERS)]
            run = Run(Path(folder), f"run-{number}", given.processes, tiers, wanted * STEPS_A_KILL)
            tally += run.under_fire(chance, wanted)
            tally += run.compare_with_peace()
            print(json.dumps(tally), flush=True)
            shutil.rmtree(run.directory)
    row = {"processes": given.processes, "seed": given.seed, **dict(sorted(tally.items()))}
    print(json.dumps(row))
    if given.tally:
        rows = json.loads(given.tally.read_text()) if given.tally.exists() else []
        given.tally.write_text(json.dumps([*rows, row], indent=1) + "\n")
    return 0 if not any(tally[name] for name in LOSSES) else 1


LOSSES = (
    "unreadable checkpoints",
    "runs that failed",
    "steps lost or repeated",
    "batches that differed",
    "final bytes that differed",
    "losses that differed",
)


class Run:
    """One run and its undisturbed twin."""

    def __init__(self, folder: Path, name: str, processes: int, tiers: str, steps: int):
        self.folder, self.name, self.processes, self.steps = folder, name, processes, steps
        self.directory = folder / name
        self.tiers = tiers
        self.file = folder / f"{name}.toml"
        self.file.write_text(RUN + TIERS[tiers])
        self.attempts = 0

    def under_fire(self, chance: random.Random, kills: int) -> Counter[str]:
        """Kill ``kills`` times, then let the run end."""
        tally, startup = Counter[str](), 4.0
        while tally["kills"] < kills:
            before, begun = self._rows(), time.monotonic()
            pids = self._start(self.name)
            if chance.random() < 0.4:  # while it starts and restores
                _sleep_unless_ended(chance.uniform(0, startup), pids)
            else:
                wanted, seen = before + chance.randint(1, STEPS_A_KILL), 0.0
                while self._rows() < wanted and _alive(pids):
                    seen = seen or (time.monotonic() if self._rows() > before else 0.0)
                    time.sleep(0.002)
                startup = 0.5 * startup + 0.5 * ((seen or time.monotonic()) - begun)
                _sleep_unless_ended(chance.uniform(0, 0.3), pids)
            if not _alive(pids):
                break  # it was done, or it failed: the last start below tells
            tally["kills"] += 1
            tally["kills while " + self._doing(before)] += 1
            victims = [chance.choice(pids)] if chance.random() < 0.5 else pids
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            time.sleep(chance.uniform(0, 0.3) if victims != pids else 0)
            for pid in pids:  # the others cannot continue alone
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _reap(pids)
            if chance.random() < 0.2:
                for pid in self._keepers():
                    os.kill(pid, signal.SIGKILL)
                    tally["keepers of snapshots killed too"] += 1
            tally += self._verify()
            copied = list(self.directory.glob("store/step_*/manifest.json"))
            if copied and chance.random() < 0.15:
                shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)
                tally["disks lost too"] += 1
        for code in _reap(self._start(self.name)):
            tally["runs that failed"] += code != 0
        tally["runs"] += 1
        for tier in re.findall(r"step \d+ from (\w+) in", self._log(self.name)):
            tally[f"restored from {tier}"] += 1
        return tally

    def compare_with_peace(self) -> Counter[str]:
        """What differs from a run that nobody killed."""
        tally = Counter[str]()
        for code in _reap(self._start("peace")):
            assert code == 0, self._log("peace")[-4000:]
        ours, theirs = self.folder / self.name, self.folder / "peace"
        rows, expected = _curve(ours), _curve(theirs)
        steps = [step for step, *_ in rows]
        assert [step for step, *_ in expected] == list(range(self.steps))
        tally["steps lost or repeated"] += len(set(range(self.steps)) ^ set(steps))
        tally["steps lost or repeated"] += len(steps) - len(set(steps))
        tally["losses that differed"] += sum(a != b for a, b in zip(rows, expected))
        tally["steps compared"] += len(rows)
        digests, reference = _batches(ours), _batches(theirs)
        for place, seen in digests.items():
            tally["batches compared"] += len(seen)
            tally["batches that differed"] += sum(digest not in reference[place] for digest in seen)
        tally["batches that differed"] += sum(place not in digests for place in reference)
        tally["batches that differed"] += sum(len(set(seen)) != 1 for seen in reference.values())
        tally["final bytes that differed"] += self._differing_leaves(ours, theirs)
        shutil.rmtree(theirs)
        return tally

    def _start(self, name: str) -> list[int]:
        self.attempts += 1
        port = random.SystemRandom().randrange(29_000, 32_000)  # below the ephemeral range
        pids = []
        for index in range(self.processes):
            args = ["train", str(self.file), "--set", f"name={name}", f"--set=output={self.folder}"]
            args += [f"--train.steps={self.steps}"]
            if "store" in self.tiers:
                args += [f"--checkpoint.persistent.url={self.folder}/{name}/store"]
            if self.processes > 1:
                args += ["--coordinator", f"localhost:{port}", "--process", str(index)]
                args += ["--processes", str(self.processes), f"--mesh.data={self.processes}"]
            pids.append(self._fork(name, index, args))
        return pids

    def _fork(self, name: str, index: int, args: list[str]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.setsid()
            log = os.open(self.folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = _train(args, self.folder / f"{name}.batches.{index}")
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def _rows(self) -> int:
        metrics = self.directory / "metrics.jsonl"
        return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0

    def _doing(self, rows_before: int) -> str:
        """What the killed run was at, as its directory shows."""
        folder = self.directory / "checkpoints"
        names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
        if any(name.endswith(".tmp-writing") for name in names):
            return "saving"
        if any(".tmp-" in name for name in names):
            return "pruning"
        return "training" if self._rows() > rows_before else "starting or restoring"

    def _verify(self) -> Counter[str]:
        from ziggurat.checkpoint import verify_step
        from ziggurat.core.errors import CheckpointError

        tally, folder = Counter[str](), self.directory / "checkpoints"
        for entry in sorted(folder.iterdir()) if folder.exists() else []:
            if re.fullmatch(r"step_\d+", entry.name):
                tally["checkpoints verified"] += 1
                try:
                    verify_step(entry)
                except CheckpointError as error:
                    print(error, flush=True)
                    tally["unreadable checkpoints"] += 1
        return tally

    def _differing_leaves(self, ours: Path, theirs: Path) -> int:
        """Leaves of the last checkpoints that are not the same bytes."""
        result = self.folder / "leaves.json"
        pid = os.fork()
        if not pid:
            try:
                result.write_text(json.dumps(_compare_leaves(ours, theirs, self.steps)))
            finally:
                os._exit(0)
        _reap([pid])
        return len(json.loads(result.read_text()))

    def _keepers(self) -> list[int]:
        """Processes that hold this run's snapshots in memory."""
        from ziggurat.checkpoint.memory.rendezvous import keeper_name

        folder = self.directory / "checkpoints"
        names = {keeper_name(folder, process) for process in range(self.processes)}
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if names & set(file.read_bytes().decode().split("\0")):
                    found.append(int(file.parent.name))
        return found

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


def _import_all() -> None:
    """What the children use, so that each need not import it."""
    import numpy
    import orbax.checkpoint

    import ziggurat.cli.train
    import ziggurat.models.loading.pretrained
    import ziggurat.train.loop
    import ziggurat.train.summary

    assert numpy, orbax.checkpoint
    assert ziggurat.cli.train, (ziggurat.models.loading.pretrained, ziggurat.train.loop)


def _train(args: list[str], batches: Path) -> int:
    """The train command, noting the digest of every batch that goes to a device."""
    import jax
    import numpy as np
    import xxhash

    from ziggurat.cli.main import main as ziggurat
    from ziggurat.train.experiment import Experiment

    jax.config.update("jax_compilation_cache_dir", str(batches.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    place = Experiment.place
    # Unbuffered and appended: a line is there before its step can be.
    file = open(batches, "ab", buffering=0)  # noqa: SIM115

    def noting(self, batch):
        digest = xxhash.xxh3_64()
        for key in sorted(batch):
            digest.update(np.ascontiguousarray(batch[key]).tobytes())
        step = getattr(self, "_placed", None)
        file.write(f"{step if step is not None else '?'} {digest.hexdigest()}\n".encode())
        return place(self, batch)

    Experiment.place = noting
    from ziggurat.train.loop import Loop

    place_next = Loop._next

    def numbered(self, batches_, step):
        object.__setattr__(self.experiment, "_placed", step)
        return place_next(self, batches_, step)

    Loop._next = numbered
    return ziggurat(args)


def _batches(run: Path) -> dict[str, list[str]]:
    """Digests by "process step", over all attempts."""
    seen: dict[str, list[str]] = {}
    for file in sorted(run.parent.glob(f"{run.name}.batches.*")):
        for line in file.read_text().splitlines():
            step, digest = line.split()
            seen.setdefault(f"{file.suffix} {step}", []).append(digest)
        file.unlink()
    assert not any("?" in place for place in seen)
    return seen


def _curve(run: Path) -> list[tuple[int, float, float]]:
    from ziggurat.train.metrics import read_metrics

    rows = read_metrics(run / "metrics.jsonl")
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def _compare_leaves(ours: Path, theirs: Path, step: int) -> list[str]:
    from ziggurat.checkpoint import read_arrays
    from ziggurat.core.pytrees import named_leaves

    differing = []
    for item in ("params", "optimizer"):
        a, b = (
            named_leaves(read_arrays(run / "checkpoints" / f"step_{step:08d}", item))
            for run in (ours, theirs)
        )
        differing += [name for name in a.keys() | b.keys() if name not in a or name not in b]
        differing += [n for n in a.keys() & b.keys() if a[n].tobytes() != b[n].tobytes()]
    return differing


def _alive(pids: list[int]) -> bool:
    return all(
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in pids
    )


def _sleep_unless_ended(seconds: float, pids: list[int]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and _alive(pids):
        time.sleep(0.002)


def _reap(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    sys.exit(main())
