"""What watching costs: the training loop with everything it records, against the bare loop.

``watched`` is the product's loop: step timer, journal, memory marks, metrics written to
``metrics.jsonl`` and TensorBoard, progress. ``bare`` fetches the batch, runs the same compiled step
and reads its loss, and nothing else. Blocks of steps of both alternate in one process; the sampled
trace, which is taken every ten minutes, is timed by itself. Where steps vary by more than watching
costs, what is sure is the time that watching takes by itself: both loops over a step that is done
at once, of which the difference is printed in milliseconds; it is also what a step would have to
wait if none of it went on while the device computes::

    python benchmarks/profile_overhead.py --rounds 12

Figures go to ``benchmarks/results/profile_overhead.json``.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from rich.console import Console

from ziggurat.core import config
from ziggurat.core.config import Resolved
from ziggurat.profile.timers import StepTimer
from ziggurat.profile.trace import tracing
from ziggurat.train.config import RunConfig
from ziggurat.train.experiment import Experiment, prepare
from ziggurat.train.loop import Loop, _sinks
from ziggurat.train.progress import TrainProgress
from ziggurat.train.run_directory import RunDirectory

RESULT = Path(__file__).parent / "results" / "profile_overhead.json"
SIZES = {"a step of some 10 ms": (64, 2, 64, 2), "a step of some 200 ms": (192, 6, 256, 4)}
"""Width, layers, tokens of a row, rows."""
BLOCKS, INSTANT_STEPS = 7, 300


def run_of(width: int, layers: int, length: int, rows: int, folder: Path) -> Resolved[RunConfig]:
    return config.parse(
        RunConfig,
        f"""
        name = "watched"
        output = "{folder}"
        tokenizer = {{ kind = "bytes" }}
        [model]
        kind = "llama"
        vocab_size = 512
        d_model = {width}
        n_layers = {layers}
        n_heads = 4
        [data]
        sources = [{{ kind = "text", path = "{{stdlib}}/json", glob = "*.py" }}]
        sequence_length = {length}
        batch_size = {rows}
        [optimizer]
        kind = "adamw"
        lr = 1e-3
        [train]
        steps = 1000000
        [mesh]
        fsdp = 1
        """,
    )


class Nowhere:
    """Checkpoints that are never due."""

    problems: tuple[str, ...] = ()

    def due(self, step: int) -> bool:
        return False

    def save(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(disk=None)


class Until:
    """Ends a loop after a step."""

    signal = None

    def __init__(self, step: int):
        self.step = step

    def after(self, done: int) -> bool:
        return done >= self.step


def watched(
    run: Resolved[RunConfig], experiment: Experiment, state: Any, compiled: Any, steps: int
) -> tuple[Any, float]:
    """The product's loop; returns the state and seconds per step."""
    directory, timer = RunDirectory(run.value.directory), StepTimer()
    with _sinks(run.value, directory, 0) as sinks:
        console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
        with TrainProgress(steps, start_step=0, name="watched", console=console) as progress:
            loop: Any = Loop(experiment, Nowhere(), sinks, progress, timer, Until(steps))  # pyright: ignore
            loop.watch(directory, 0, compiled.as_text)
            start = time.perf_counter()
            state = loop.run(state, 0, compiled)
            return state, (time.perf_counter() - start) / steps


def bare(experiment: Experiment, state: Any, compiled: Any, steps: int) -> tuple[Any, float]:
    """The same steps on the same batches, with the next batch fetched while a step runs."""
    start = time.perf_counter()
    batches = experiment.data.iterate(0)
    batch = experiment.place(next(batches))
    for _ in range(steps):
        state, metrics = compiled(state, batch, {})
        batch = experiment.place(next(batches))
        float(metrics["loss"])
    return state, (time.perf_counter() - start) / steps


class Instant:
    """A step that is done before it has begun, with the figures of a real one."""

    def __init__(self, compiled: Any, metrics: Any):
        self.as_text, self._metrics = compiled.as_text, metrics

    def __call__(self, state: Any, batch: Any, frozen: Any) -> tuple[Any, Any]:
        # new arrays: a figure that was read once is read again for nothing
        return state, {name: jax.numpy.array(value) for name, value in self._metrics.items()}


def own_cost(
    run: Resolved[RunConfig], experiment: Experiment, state: Any, step: Any
) -> list[float]:
    """Milliseconds of watching a step, block by block."""
    costs = []
    for _ in range(BLOCKS):
        state, with_it = watched(run, experiment, state, step, INSTANT_STEPS)
        state, without = bare(experiment, state, step, INSTANT_STEPS)
        costs.append(1e3 * (with_it - without))
    return costs


def measure(size: tuple[int, int, int, int], rounds: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(*size, Path(folder))
        RunDirectory(run.value.directory).open(run)
        experiment = prepare(run.value)
        state = experiment.initial()
        compiled = experiment.step.lower(state, experiment.batch_struct(), {}).compile()  # pyright: ignore
        state, step_s = bare(experiment, state, compiled, 5)
        batch = experiment.place(next(experiment.data.iterate(0)))
        state, metrics = compiled(state, batch, {})
        metrics = {name: float(value) for name, value in metrics.items()}
        costs = own_cost(run, experiment, state, Instant(compiled, metrics))
        steps = max(5, round(seconds / step_s))
        ratios, plain = [], []
        for number in range(rounds):
            took = {}
            for name in ("watched", "bare")[:: 1 if number % 2 else -1]:
                if name == "bare":
                    state, took[name] = bare(experiment, state, compiled, steps)
                else:
                    state, took[name] = watched(run, experiment, state, compiled, steps)
            ratios.append(took["watched"] / took["bare"] - 1)
            plain.append(took["bare"])
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as traces, tracing(Path(traces)):
            state, _ = bare(experiment, state, compiled, 1)
        trace_s = time.perf_counter() - start - statistics.median(plain)
        overhead = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        return {
            "step_ms": round(1e3 * statistics.median(plain), 2),
            "steps_a_block": steps,
            "own_cost_ms": {
                "median": round(statistics.median(costs), 3),
                "min": round(min(costs), 3),
                "max": round(max(costs), 3),
            },
            "overhead": {name: round(value, 4) for name, value in overhead.items()},
            "a_trace_s": round(trace_s, 3),
            "trace_every_600_s": round(trace_s / run.value.profile.trace_every_s, 5),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="What watching a training run costs.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one block")
    parser.add_argument("--no-result", action="store_true", help="print only")
    options = parser.parse_args()
    machine = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    result: dict[str, Any] = {"rounds": options.rounds, "machine": machine}
    for name, size in SIZES.items():
        result[name] = measure(size, options.rounds, options.seconds)
        found = result[name]
        print(
            f"{name} ({found['step_ms']} ms): {found['overhead']['median']:+.2%} "
            f"({found['overhead']['min']:+.2%} to {found['overhead']['max']:+.2%}); "
            f"watching a step takes {found['own_cost_ms']['median']:.2f} ms "
            f"({found['own_cost_ms']['min']:.2f} to {found['own_cost_ms']['max']:.2f}); "
            f"a trace {found['a_trace_s']} s"
        )
    if not options.no_result:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
