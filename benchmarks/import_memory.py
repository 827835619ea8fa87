"""Peak memory of ``ziggurat import hf`` on a published model of several files, and its resumption.

Writes a Llama-like model of random bfloat16 weights in shards and imports it in a process of its
own. Prints the process's peak of resident memory against 1.3 times the largest shard and the
target, and beyond that of importing a tiny model, which is Python and the libraries. With
``--kill`` the import is killed (SIGKILL) once half of it is on disk, run again, and the result is
compared with the first::

    python benchmarks/import_memory.py --gb 3.6 --shard-gb 0.5 --kill
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")

ALLOWED = 1.3


def make(directory: Path, gb: float, shard_gb: float, width: int = 1024) -> None:
    """A directory as transformers saves one."""
    import ml_dtypes

    from ziggurat.core.pytrees import named_leaves
    from ziggurat.data.tokenizers import byte_level
    from ziggurat.formats import write_sharded
    from ziggurat.models import LanguageModel, LlamaConfig
    from ziggurat.models.families.llama import hf

    layers = max(1, round(gb * 1e9 / 2 / (4 * width**2 + 3 * width * 4 * width)))
    config = LlamaConfig(
        vocab_size=32 * width, d_model=width, n_layers=layers, n_heads=16, d_ff=4 * width
    )
    leaves = named_leaves(LanguageModel.build(config).abstract)
    rng = np.random.default_rng(0)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        tables = hf.hf_names(config)
        stacked = [name for name in tables if name.stacked_axes]
        homes = [(name, name.all_theirs(layers)) for name in stacked]
        for layer in range(layers):  # in the order of published files: layer after layer
            yield from ((theirs[layer], drawn(name)) for name, theirs in homes)
        yield from ((name.theirs, drawn(name)) for name in tables if not name.stacked_axes)

    def drawn(name: Any) -> np.ndarray:
        shape = leaves[name.ours].shape[name.stacked_axes :]
        values = rng.random(shape[::-1] if name.transpose else shape, np.float32)
        return values.astype(ml_dtypes.bfloat16)

    write_sharded(directory, tensors(), int(shard_gb * 1e9))
    byte_level().save(directory)
    (directory / "config.json").write_text(json.dumps(hf.to_hf(config)))


def imported(source: Path, output: Path) -> int:
    """Import in a process of its own; its peak of resident memory in bytes."""
    options = ["--output", str(output), "--verify", "never"]
    command = [sys.executable, __file__, "--child", "import", "hf", str(source), *options]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(ended.stdout.split()[-1])


def run_and_tell(arguments: list[str]) -> None:
    """Run a command of ziggurat in this process, then print the peak of its memory.

    It is the kernel's ``VmHWM``: what ``getrusage`` tells begins at the parent's.
    """
    from ziggurat.cli.main import main

    if main(arguments) != 0:
        raise SystemExit("the command failed")
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


def die_in_batch(number: int, arguments: list[str]) -> None:
    """Run a command of ziggurat in this process, killed between a batch's data and its count."""
    from ziggurat.checkpoint.resumable_step import ResumableStep
    from ziggurat.cli.main import main

    note = ResumableStep._note

    def counted(self: ResumableStep) -> None:
        if self.finished == number:
            os.kill(os.getpid(), signal.SIGKILL)
        note(self)

    ResumableStep._note = counted
    main(arguments)


def killed_at_half(source: Path, output: Path) -> tuple[int, int]:
    """Kill an import once half of it is on disk; batches finished then, and all of them."""
    from ziggurat.checkpoint.resumable_step import PROGRESS, SUFFIX
    from ziggurat.models.loading import pretrained, streaming
    from ziggurat.nn import Precision

    precision = Precision(as_stored=True)
    described = pretrained.load(source, precision=precision, in_files=True)
    total = streaming.count_batches(described)
    options = ["--output", str(output), "--verify", "never"]
    command = ["--die-in-batch", str(total // 2), "import", "hf", str(source), *options]
    ended = subprocess.run([sys.executable, __file__, *command], stdout=subprocess.DEVNULL)
    if ended.returncode != -signal.SIGKILL:
        raise SystemExit(f"the import that was to be killed ended with {ended.returncode}")
    progress = output.with_name(output.name + SUFFIX) / PROGRESS
    return json.loads(progress.read_text())["finished"], total


def equal(one: Path, other: Path) -> bool:
    """Whether the arrays of two checkpoints are the same bytes, looked at one by one."""
    from ziggurat.checkpoint import containers

    with containers.open(one) as ours, containers.open(other) as theirs:
        return set(ours) == set(theirs) and all(
            np.array_equal(ours.read(n).view(np.uint8), theirs.read(n).view(np.uint8)) for n in ours
        )


def measure(folder: Path, gb: float, shard_gb: float, kill: bool) -> dict[str, Any]:
    tiny, source = folder / "tiny-hf", folder / "hf"
    make(tiny, 0.0, 1.0, width=64)
    make(source, gb, shard_gb)
    floor = imported(tiny, folder / "tiny")
    began = time.monotonic()
    peak = imported(source, folder / "imported")
    seconds = time.monotonic() - began
    files = [file.stat().st_size for file in source.glob("*.safetensors")]
    bound = ALLOWED * max(files) + sum(files)
    found: dict[str, Any] = {
        "target_bytes": sum(files),
        "shards": len(files),
        "largest_shard_bytes": max(files),
        "peak_rss_bytes": peak,
        "peak_rss_of_a_tiny_model_bytes": floor,
        "bound_bytes": round(bound),
        "peak_over_bound": round(peak / bound, 3),
        "peak_beyond_a_tiny_model_over_largest_shard": round((peak - floor) / max(files), 3),
        "seconds": round(seconds, 1),
    }
    if kill:
        again = folder / "killed"
        at, total = killed_at_half(source, again)
        began = time.monotonic()
        imported(source, again)
        found |= {
            "killed_after_batches": at,
            "batches": total,
            "seconds_of_the_rest": round(time.monotonic() - began, 1),
            "equal_after_resuming": equal(folder / "imported", again),
        }
    return found


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_and_tell(sys.argv[2:])
        return
    if sys.argv[1:2] == ["--die-in-batch"]:
        die_in_batch(int(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gb", type=float, default=3.6, help="size of the files together")
    parser.add_argument("--shard-gb", type=float, default=0.5)
    parser.add_argument("--kill", action="store_true", help="also kill it and resume")
    parser.add_argument("--folder", type=Path, help="where the files go; default a temporary one")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), arguments.gb, arguments.shard_gb, arguments.kill)
    found["machine"] = {"cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps(found, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if found["peak_over_bound"] > 1 or not found.get("equal_after_resuming", True):
        raise SystemExit("the import took more memory than it may, or did not resume rightly")


if __name__ == "__main__":
    main()
