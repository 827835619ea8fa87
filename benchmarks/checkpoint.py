"""Checkpoints against the disk itself, Orbax alone, torch.save and torch's distributed checkpoints.

One tree of float32 weights; every contender writes it until it is synced, in turn, several rounds.
Prints how long the training loop is held (blocking), until it is on disk (total), and restoring
with the files dropped from the page cache, and writes them to
``benchmarks/results/checkpoint.json`` with the machine's facts::

    python benchmarks/checkpoint.py --gb 1 4 --rounds 5 --directory /fast/disk

Contenders: ``raw`` is ``dd conv=fsync`` of as many bytes, and reading them back. ``ziggurat`` is
what a run does: digests taken while writing, compared while reading. ``ziggurat, no digests`` does
neither, to show what verification costs. ``memory tier`` is a snapshot in a second process.
Torch's are left out, with a notice, where torch is missing.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from ziggurat.checkpoint import CheckpointConfig, Checkpoints, digests, manifest

RESULT = Path(__file__).parent / "results" / "checkpoint.json"
LEAF_BYTES = 1 << 26


class Times(NamedTuple):
    """Seconds of one save and one restore."""

    blocking: float
    total: float
    restore: float


Contender = Callable[[Path], Times]


def make_tree(gb: float) -> dict[str, jax.Array]:
    """Random float32 weights, as incompressible as trained ones."""
    random = np.random.default_rng(0)
    count = max(1, round(gb * 2**30 / LEAF_BYTES))
    shape = (LEAF_BYTES // 4 // 4096, 4096)
    return {
        f"w{index}": jax.device_put(random.standard_normal(shape, np.float32))
        for index in range(count)
    }


def raw(tree: dict[str, jax.Array]) -> Contender:
    """dd of as many zeros, synced; and reading them."""
    size = sum(leaf.nbytes for leaf in tree.values())

    def run(directory: Path) -> Times:
        path = directory / "zeros"
        write = ["dd", "if=/dev/zero", f"of={path}", "bs=16M", f"count={size >> 24}", "conv=fsync"]
        total = timed(lambda: subprocess.run(write, check=True, capture_output=True))
        drop_from_cache(directory)
        read = ["dd", f"if={path}", "of=/dev/null", "bs=16M"]
        return Times(
            total, total, timed(lambda: subprocess.run(read, check=True, capture_output=True))
        )

    return run


def ziggurat(tree: dict[str, jax.Array], with_digests: bool) -> Contender:
    """Our own save and restore of the disk tier."""
    like = {"params": abstract(tree)}

    def run(directory: Path) -> Times:
        config = CheckpointConfig(verify=with_digests)
        hashing = contextlib.nullcontext() if with_digests else no_digests()
        with hashing, Checkpoints(directory, config) as checkpoints:
            report = checkpoints.save(1, {"params": tree}, {"step": 1})
            checkpoints.wait()
            assert report.total_s is not None
            drop_from_cache(directory)
            restore = timed(lambda: settle(checkpoints.restore(1, like).arrays))
        return Times(report.blocking_s, report.total_s, restore)

    return run


def digest_costs(tree: dict[str, jax.Array], rounds: int, parent: Path) -> dict[str, Any]:
    """What digests cost inside saves: how long a save waits for them after its last write, and
    their processor time as a part of what all cores had, were nothing of it overlapped.

    Both are parts of the same save, so that the disk's moods, many times larger, do not matter.
    """
    waits, works = [], []
    for _ in range(rounds):
        folder, seconds = Path(tempfile.mkdtemp(dir=parent)), {"wait": 0.0, "work": 0.0}
        with contextlib.ExitStack() as patches:
            for owner, name, clock, entry in (
                (digests.WhileWriting, "result", time.perf_counter, "wait"),
                (manifest, "digest_files", time.perf_counter, "wait"),
                (digests, "digest_cached_file", time.thread_time, "work"),
                (digests, "digest_file", time.thread_time, "work"),
            ):
                patched = counted(getattr(owner, name), clock, seconds, entry)
                patches.enter_context(unittest.mock.patch.object(owner, name, patched))
            with Checkpoints(folder, CheckpointConfig()) as checkpoints:
                os.sync()
                report = checkpoints.save(1, {"params": tree}, {"step": 1})
                checkpoints.wait()
        shutil.rmtree(folder)
        assert report.total_s is not None
        waits.append(seconds["wait"] / report.total_s)
        works.append(seconds["work"] / report.total_s / (os.cpu_count() or 1))
    return {"digest_wait_part_of_save": spread(waits), "digest_work_part_of_cores": spread(works)}


def counted(
    function: Callable[..., Any], clock: Callable[[], float], seconds: dict[str, float], entry: str
) -> Callable[..., Any]:
    """``function``, whose time is added to an entry."""

    def call(*arguments: Any) -> Any:
        start = clock()
        try:
            return function(*arguments)
        finally:
            seconds[entry] += clock() - start

    return call


@contextlib.contextmanager
def no_digests() -> Iterator[None]:
    """Digests cost nothing inside: every file's is zero."""
    with contextlib.ExitStack() as patches:
        for name in ("digest_file", "digest_cached_file"):
            patch = unittest.mock.patch.object(digests, name, return_value="0" * 32)
            patches.enter_context(patch)
        yield


def memory_tier(tree: dict[str, jax.Array]) -> Contender:
    """A snapshot in the memory of a second process, and a restore from it."""
    from ziggurat.checkpoint.config import MemoryTier
    from ziggurat.checkpoint.tiers import Tiers

    config = CheckpointConfig(every=10**9, memory=MemoryTier())
    like = {"params": abstract(tree)}

    def run(directory: Path) -> Times:
        tiers = Tiers(directory, config, identity="benchmark")
        start = time.perf_counter()
        tiers.save(1, {"params": tree}, {"step": 1})
        blocking = time.perf_counter() - start
        tiers.wait()
        total = time.perf_counter() - start
        restored: list[Any] = []
        restore = timed(lambda: restored.append(tiers.restore(1, like)))
        restore += timed(lambda: settle(restored[0].arrays))
        assert restored[0].tier == "memory"
        tiers.discard_after(0)
        tiers.close(finished=True)
        return Times(blocking, total, restore)

    return run


def orbax(tree: dict[str, jax.Array]) -> Contender:
    """Orbax' own asynchronous checkpointer, as it comes."""
    import orbax.checkpoint as ocp

    restore_args = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape), tree
    )

    def run(directory: Path) -> Times:
        checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        start = time.perf_counter()
        arguments: Any = ocp.args.PyTreeSave(tree)  # pyright: ignore[reportCallIssue]
        checkpointer.save(directory / "step", args=arguments)
        blocking = time.perf_counter() - start
        checkpointer.wait_until_finished()
        sync(directory)
        total = time.perf_counter() - start
        drop_from_cache(directory)
        arguments = ocp.args.PyTreeRestore(restore_args=restore_args)  # pyright: ignore[reportCallIssue]
        restore = timed(lambda: settle(checkpointer.restore(directory / "step", args=arguments)))
        checkpointer.close()
        return Times(blocking, total, restore)

    return run


def torch_save(tree: dict[str, jax.Array]) -> Contender:
    """torch.save of one file, synced, and torch.load."""
    import torch

    state = {name: torch.from_numpy(np.array(leaf)) for name, leaf in tree.items()}

    def run(directory: Path) -> Times:
        path = directory / "state.pt"

        def write() -> None:
            torch.save(state, path)
            sync(directory)

        total = timed(write)
        drop_from_cache(directory)
        return Times(total, total, timed(lambda: torch.load(path, weights_only=True)))

    return run


def torch_distributed(tree: dict[str, jax.Array]) -> Contender:
    """torch.distributed.checkpoint of one process, which syncs its files itself."""
    import torch
    import torch.distributed.checkpoint as dcp

    state = {name: torch.from_numpy(np.array(leaf)) for name, leaf in tree.items()}

    def run(directory: Path) -> Times:
        def write() -> None:
            dcp.state_dict_saver.save(state, checkpoint_id=directory / "step", no_dist=True)
            sync(directory)

        total = timed(write)
        drop_from_cache(directory)
        empty = {name: torch.empty_like(value) for name, value in state.items()}
        return Times(
            total,
            total,
            timed(
                lambda: dcp.state_dict_loader.load(
                    empty, checkpoint_id=directory / "step", no_dist=True
                )
            ),
        )

    return run


def abstract(tree: dict[str, jax.Array]) -> Any:
    """What to restore into: the same arrays on the same devices."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def settle(arrays: Any) -> None:
    jax.block_until_ready(arrays)


def sync(directory: Path) -> None:
    """Flush every file below a directory."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def drop_from_cache(directory: Path) -> None:
    """Ask the kernel to forget the content of every file below a directory."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def contenders(tree: dict[str, jax.Array], torch_too: bool) -> dict[str, Contender]:
    chosen: dict[str, Contender] = {
        "raw": raw(tree),
        "ziggurat": ziggurat(tree, True),
        "ziggurat, no digests": ziggurat(tree, False),
        "memory tier": memory_tier(tree),
        "orbax": orbax(tree),
    }
    if torch_too:
        try:
            chosen |= {"torch.save": torch_save(tree), "torch DCP": torch_distributed(tree)}
        except ImportError as error:
            print(f"torch is left out: {error}")
    return chosen


VERIFYING = ("ziggurat", "ziggurat, no digests")


def measure(
    gb: float, rounds: int, verify_rounds: int, parent: Path, torch_too: bool
) -> tuple[dict[str, list[Times]], dict[str, list[Times]]]:
    """Times of each contender per round, in turn, and of many more rounds with digests and without;
    the first save of each is a warm-up of 64 MB."""
    small = make_tree(LEAF_BYTES / 2**30)
    for run in contenders(small, torch_too).values():
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            run(Path(folder))
    tree = make_tree(gb)
    entries = contenders(tree, torch_too)
    pair = {name: entries[name] for name in VERIFYING}
    return in_turn(entries, rounds, parent), in_turn(pair, verify_rounds, parent)


def in_turn(entries: dict[str, Contender], rounds: int, parent: Path) -> dict[str, list[Times]]:
    """Each contender once per round, every round another one first."""
    times: dict[str, list[Times]] = {name: [] for name in entries}
    for number in range(rounds):
        names = list(entries)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            folder = Path(tempfile.mkdtemp(dir=parent))
            try:
                gc.collect()
                os.sync()
                times[name].append(entries[name](folder))
            finally:
                shutil.rmtree(folder)
    return times


def summary(times: dict[str, list[Times]], verifying: dict[str, list[Times]]) -> dict[str, Any]:
    """Medians with their spread, and totals against the raw disk in the same round."""
    result: dict[str, Any] = {}
    for name, runs in times.items():
        entry: dict[str, Any] = {
            field: spread([getattr(run, field) for run in runs]) for field in Times._fields
        }
        pairs = list(zip(runs, times["raw"], strict=True))
        entry["total_against_raw"] = spread([run.total / disk.total for run, disk in pairs])
        result[name] = entry
    own, pairs = times["ziggurat"], list(zip(*(verifying[name] for name in VERIFYING), strict=True))
    result["goals"] = {
        "verify_part_of_save": spread([a.total / b.total - 1 for a, b in pairs]),
        "verify_part_of_restore": spread([a.restore / b.restore - 1 for a, b in pairs]),
        "blocking_part_of_total": spread([run.blocking / run.total for run in own]),
        "restore_disk_over_memory": spread(
            [a.restore / b.restore for a, b in zip(own, times["memory tier"], strict=True)]
        ),
    }
    return result


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest; and with ten values or more, the middle half."""
    middle = {}
    if len(values) >= 10:
        quarters = statistics.quantiles(values, n=4)
        middle = {"lower_quartile": round(quarters[0], 4), "upper_quartile": round(quarters[2], 4)}
    return {
        "median": round(statistics.median(values), 4),
        **middle,
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def show(gb: float, result: dict[str, Any]) -> None:
    print(f"\n{gb:g} GB" + f"{'blocking s':>32}{'total s':>10}{'of raw':>9}{'restore s':>11}")
    for name, entry in result.items():
        if name != "goals":
            columns = (entry[field]["median"] for field in ("blocking", "total"))
            print(
                f"{name:<24}{next(columns):>12.3f}{next(columns):>10.2f}"
                f"{entry['total_against_raw']['median']:>9.2f}{entry['restore']['median']:>11.2f}"
            )
    for name, entry in result["goals"].items():
        print(f"{name}: {entry['median']:.3f} ({entry['min']:.3f} to {entry['max']:.3f})")


def facts() -> dict[str, object]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Checkpoints against disk, Orbax and torch.")
    parser.add_argument("--gb", type=float, nargs="+", default=[1.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verify-rounds", type=int, default=20, help="with and without digests")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--no-result", action="store_true", help="print only")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    result: dict[str, Any] = {
        "rounds": options.rounds,
        "verify_rounds": options.verify_rounds,
        "machine": facts(),
        "gb": {},
    }
    for gb in options.gb:
        times = measure(
            gb, options.rounds, options.verify_rounds, options.directory, not options.no_torch
        )
        result["gb"][f"{gb:g}"] = summary(*times)
        costs = digest_costs(make_tree(gb), options.verify_rounds, options.directory)
        result["gb"][f"{gb:g}"]["goals"] |= costs
        show(gb, result["gb"][f"{gb:g}"])
    if not options.no_result:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
