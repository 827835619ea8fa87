"""The training loop, in this order for every step: data, step, metrics, evaluation, checkpoint.

A run that has checkpoints resumes from the newest intact one: same parameters, same optimizer, same
next batch, so that it ends byte for byte where an undisturbed run ends.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
from rich.console import Console

from ziggurat.checkpoint import Tiers
from ziggurat.core import config
from ziggurat.core.compile_cache import keeping_compiled
from ziggurat.core.config import Resolved
from ziggurat.core.errors import TrainError
from ziggurat.core.protocols import Batch, MetricSink
from ziggurat.mesh import Processes
from ziggurat.models import Params
from ziggurat.models.loading.step_files import FROZEN
from ziggurat.profile.flops import mfu, training_flops_per_token
from ziggurat.profile.hardware import chip_count, peak
from ziggurat.profile.journal import Journal
from ziggurat.profile.memory import compiled_memory, device_memory, host_memory
from ziggurat.profile.sampling import TraceSampler
from ziggurat.profile.timers import StepTimer
from ziggurat.train.config import COMPARABLE, RunConfig
from ziggurat.train.derived import check_report
from ziggurat.train.evaluation import evaluate
from ziggurat.train.experiment import Experiment, local_rows, prepare
from ziggurat.train.metrics import DerivedSink, Sinks
from ziggurat.train.outcome import TrainingOutcome
from ziggurat.train.progress import TrainProgress
from ziggurat.train.registries import CALLBACKS, SINKS
from ziggurat.train.resuming import resumed
from ziggurat.train.run_directory import RunDirectory
from ziggurat.train.starting import check_saved, first_state, open_checkpoints
from ziggurat.train.state import TrainState
from ziggurat.train.stopping import StopRequest
from ziggurat.train.supplied import Callback, Supplied

_log = logging.getLogger(__name__)
UNTRAINED = (
    "no step was finite, so no learning rate is to blame: look at the data, and at the weights "
    "that the run starts from"
)
LOWER = "lower the learning rate or look at the data"
MEMORY_S = 1.0
"""Seconds between two looks at memory; figures in between repeat the last."""


def train(
    run: Resolved[RunConfig],
    console: Console | None = None,
    *,
    supplied: Supplied | None = None,
    stop: StopRequest | None = None,
    timer: StepTimer | None = None,
    compiled_step: Callable[[Any, tuple[Any, ...]], Any] | None = None,
) -> TrainingOutcome:
    """Train a run to its end, from its newest checkpoint if it has one.

    Args:
        run: the resolved run file.
        console: where progress goes; default standard error.
        supplied: objects in place of tables of the run file, metric sinks and callbacks.
        stop: who asks the run to stop; default signals do.
        timer: keeps account of the time, from when the caller made it; default from here, and the
            time since the process began counts too.
        compiled_step: makes of the jitted step and its arguments a compiled one; default by tracing
            and compiling it.

    Raises:
        TrainError: too many steps in a row were not finite; the last checkpoint stays.
        ConfigError, DataError, ModelError, ShardingError, CheckpointError: as their parts say.
    """
    launched_s = None if timer is None else 0.0
    timer, directory = timer or StepTimer(), RunDirectory(run.value.directory)
    supplied = supplied or Supplied()
    everyone = Processes()
    with timer.phase("start"):
        run, changes = resumed(run, everyone.once("check the run", partial(directory.check, run)))
        experiment = prepare(run.value, supplied=supplied)
        check_report(experiment)
        identity = everyone.once("open the run", directory.identify)
    stop = stop or StopRequest(run.value.train.stop_within_s, everyone)
    if not everyone.first:
        console = Console(quiet=True)
    with (
        keeping_compiled(run.value.train.compile_cache),
        open_checkpoints(run.value, directory, identity) as checkpoints,
    ):
        with timer.phase("start"):
            check_saved(directory, checkpoints, everyone)
            state, done = first_state(experiment, checkpoints)
        with timer.phase("compile"):
            arguments = (state, experiment.batch_struct(), experiment.parts.frozen)
            compiled = (compiled_step or _compiled)(experiment.step, arguments)
            del arguments
            # the first collective waits 30 s for the others, and one of them may compile for longer
            everyone.barrier("compiled")
        everyone.once("publish the run", partial(directory.publish, run, done))
        with stop.listening(), _sinks(run.value, done, supplied.sinks) as sinks:
            progress = TrainProgress(
                run.value.train.steps, start_step=done, name=run.value.name, console=console
            )
            with progress:
                if done:
                    progress.resumed(done, directory.checkpoints)
                for line in changes:
                    progress.note(f"{run.value.name}  changed: {line}")
                callbacks = _callbacks(run.value, supplied.callbacks)
                loop = Loop(experiment, checkpoints, sinks, progress, timer, stop, callbacks)
                loop.watch(directory, done, compiled.as_text, launched_s)
                state = loop.run(state, done, compiled)
        status, ended_by = loop.status, stop.signal if loop.done < loop.total else None
        for callback in callbacks:
            callback.on_end(loop.done, status)
    memory = compiled_memory(compiled)
    return TrainingOutcome(run, directory, experiment, state, timer, status, memory, ended_by)


class Loop:
    """The training loop: runs steps, and saves, evaluates and reports between them."""

    def __init__(
        self,
        experiment: Experiment,
        checkpoints: Tiers,
        sinks: Sinks,
        progress: TrainProgress,
        timer: StepTimer,
        stop: StopRequest,
        callbacks: Sequence[Callback] = (),
    ):
        self.experiment, self.checkpoints, self.stop = experiment, checkpoints, stop
        self.callbacks, self.total = callbacks, experiment.run.train.steps
        self._ended_by: Callback | None = None
        self.sinks, self.progress, self.timer = sinks, progress, timer
        self.done = 0
        self._rollout = experiment.parts.rollout
        run_file = config.to_toml(experiment.run).encode()
        self._files = {**experiment.parts.files, "run.toml": run_file}
        self._throughput = _Throughput(experiment)
        self._saved = -1
        self._directory: RunDirectory | None = None
        self._latest: dict[str, float] = {}
        self._unwritten: tuple[int, dict[str, float]] | None = None
        self._memory: tuple[float, dict[str, float]] = -math.inf, {}
        self._journal: Journal | None = None
        self._tracer: TraceSampler | None = None

    def watch(
        self,
        directory: RunDirectory,
        done: int,
        program: Callable[[], str],
        launched_s: float | None = None,
    ) -> None:
        """Account for time and checkpoints, and trace a step now and then; on the first process
        only."""
        if Processes().first:
            self._directory = directory
            self._journal = Journal(directory.ledger, self.timer, launched_s=launched_s)
            self._journal.note(done, now=True)
            settings = self.experiment.run.profile
            self._tracer = TraceSampler(settings, directory.traces, self.timer, program)

    @property
    def status(self) -> str:
        """``finished``, or the reason why the run ended early."""
        if self.done == self.total:
            return "finished"
        if self.stop.signal is not None:
            return f"stopped by {self.stop.signal.name} after step {self.done}"
        if self._ended_by is not None:
            return f"stopped by {type(self._ended_by).__name__} after step {self.done}"
        return f"ended by its data after step {self.done} of {self.total}"

    def run(self, state: TrainState, done: int, step: Any) -> TrainState:
        """Run the steps from ``done`` to the end; ``step`` is the compiled step."""
        for callback in self.callbacks:
            callback.on_start(self.experiment.run, done)
        try:
            return self._run(state, done, step)
        finally:
            self._write()

    def _run(self, state: TrainState, done: int, step: Any) -> TrainState:
        self.done, run = done, self.experiment.run
        data, frozen = self.experiment.data, self.experiment.parts.frozen
        batches = self._batches(done)
        batch = self._next(batches, done)
        while batch is not None and not self._stopped():
            tracing = contextlib.nullcontext() if self._tracer is None else self._tracer.step()
            with self.timer.step(self.done) as record, tracing:
                batch, figures = self._rolled_out(state.params, batch)
                with self.timer.phase("step"):
                    state, metrics = step(state, batch, frozen)
                batch = self._next(batches, self.done + 1)  # while the device computes
                self._write()  # likewise
                with self.timer.phase("step"):
                    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                record.tokens = data.batch_size * data.sequence_length
            values |= figures
            self.done += 1
            self._note(values)
            self._check_finite(values)
            if run.evaluation.every and self.done % run.evaluation.every == 0:
                self._evaluate(state)
            if self.checkpoints.due(self.done):
                self._save(state)
            self._note_saved()
            if self._journal is not None:
                self._journal.note(self.done)
            for callback in self.callbacks:
                if callback.on_step(self.done - 1, values) and self._ended_by is None:
                    self._ended_by = callback
        if self.done == run.train.steps:
            self._check_any_finite(state)
        if self.done == run.train.steps and not (
            run.evaluation.every and self.done % run.evaluation.every == 0
        ):
            self._evaluate(state)
        self._save(state, last=True)
        self._note_saved()
        if self._journal is not None:
            self._journal.close(self.done)
        if self.done == run.train.steps:
            self._check_evaluated()
        return state

    def _stopped(self) -> bool:
        return self.stop.after(self.done) or self._ended_by is not None

    def _batches(self, done: int) -> Iterator[Batch]:
        data = self.experiment.data
        return data.iterate(done, local_rows(self.experiment.layout, data.batch_size))

    def _next(self, batches: Iterator[Batch], step: int) -> Any:
        """The batch of ``step``, on the devices unless it is still to be rolled out; None after the
        last step or the end of the data."""
        if step >= self.experiment.run.train.steps:
            return None
        with self.timer.phase("data"):
            batch = next(batches, None)
            if batch is None or self._rollout is not None:
                return batch
            return self.experiment.place(batch)

    def _rolled_out(self, params: Params, batch: Any) -> tuple[Any, dict[str, float]]:
        """Training batch and figures, made from prompts where the objective rolls out."""
        if self._rollout is None:
            return batch, {}
        with self.timer.phase("rollout"):
            rows, figures = self._rollout(params, batch, self.done)
            return self.experiment.place(rows), figures

    def _note(self, values: dict[str, float]) -> None:
        """Keep a step's figures, to be written while the next one runs."""
        record = self.timer.records[-1]
        values |= {"step_time_s": record.wall_s, "data_time_s": record.phases_s.get("data", 0.0)}
        values |= self._throughput.of(record.tokens_per_s)
        if self.checkpoints.problems:
            values["checkpoint_problems"] = float(len(self.checkpoints.problems))
        self._unwritten = (self.done - 1, values)

    def _write(self) -> None:
        """Write what has been kept; before anything that goes by it, or that may be the last."""
        if self._unwritten is None:
            return
        (step, values), self._unwritten = self._unwritten, None
        now = time.monotonic()
        if now - self._memory[0] > MEMORY_S:
            sizes = device_memory() | {"host_rss_bytes": host_memory()["host_rss_bytes"]}
            self._memory = now, {name: float(size) for name, size in sizes.items()}
        self._record(step, values | self._memory[1])

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._latest |= values
        self.sinks.write(step, values)
        self.progress.write(step, values)

    def _note_saved(self) -> None:
        newest = self.checkpoints.newest_saved
        if self._directory is not None and newest is not None:
            with contextlib.suppress(OSError):  # a full disk; the next start looks for itself
                self._directory.note_saved(newest)

    def _check_finite(self, values: dict[str, float]) -> None:
        bad, limit = int(values["bad_steps_in_a_row"]), self.experiment.run.train.max_bad_steps
        if bad:
            _log.warning("step %d: loss or gradient not finite; update left out", self.done - 1)
        if bad >= limit:
            self.checkpoints.wait(strict=False)
            newest = self.checkpoints.latest()
            raise TrainError(
                f"training stopped after step {self.done}",
                found=f"{bad} steps in a row whose loss or gradient was not finite",
                expected=f"fewer than train.max_bad_steps = {limit}",
                fix=(UNTRAINED if bad == self.done else LOWER)
                + (f"; step {newest.step} is saved" if newest else "; nothing was saved yet"),
            )

    def _check_any_finite(self, state: TrainState) -> None:
        """Refuse to call a run finished of which no step changed anything."""
        if int(state.skipped) == self.done:
            raise TrainError(
                f"training ended after step {self.done}",
                found="not one step whose loss and gradient were finite",
                expected="a loss that is a number",
                fix=UNTRAINED,
            )

    def _check_evaluated(self) -> None:
        """Refuse to call a run finished whose last evaluation gave no number."""
        loss = self._latest.get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise TrainError(
                f"training ended after step {self.done}, which is saved",
                found=f"eval_loss {loss}",
                expected="a number",
                fix="look at the held-out documents",
            )

    def _evaluate(self, state: TrainState) -> None:
        self._write()
        with self.timer.phase("evaluation"):
            values = evaluate(self.experiment, state.evaluated)
        if values:
            self._record(self.done - 1, values)
        if not math.isfinite(values.get("eval_loss", 0.0)):
            _log.warning("evaluation after step %d: loss not finite", self.done)

    def _save(self, state: TrainState, last: bool = False) -> None:
        if self._saved == self.done and not last:
            return
        self._write()
        metrics = {name: self._latest[name] for name in COMPARABLE if name in self._latest}
        counters = {"skipped": int(state.skipped), "bad_in_a_row": int(state.bad_in_a_row)}
        records = {
            "data": self.experiment.data.state(self.done),
            "prng": {"seed": self.experiment.run.seed, "implementation": "threefry2x32"},
            "counters": {"step": self.done, **counters},
        }
        kept = self.experiment.parts.kept
        arrays = state.arrays | ({FROZEN: kept} if kept else {})
        with self.timer.phase("checkpoint"):
            report = self.checkpoints.save(
                self.done, arrays, records, self._files, metrics=metrics, final=last
            )
        if "disk" in report.tiers:
            self.sinks.write(self.done - 1, {"checkpoint_blocking_s": report.blocking_s})
        self._saved = self.done
        for callback in self.callbacks:
            callback.on_save(self.done)


class _Throughput:
    """Tokens per second, and MFU where the device's peak is known."""

    def __init__(self, experiment: Experiment):
        devices = experiment.layout.mesh.devices.flatten()
        self._chips = chip_count(list(devices))
        compute = experiment.model.precision.compute
        self._peak = peak(devices[0].device_kind, compute)
        self._flops = training_flops_per_token(
            experiment.model.matmul_parameter_count,
            layers=1,
            heads=1,
            head_dim=experiment.model.attention_channels,
            sequence=experiment.data.sequence_length,
            recurrent=experiment.model.recurrent_flops_per_token,
        )

    def of(self, tokens_per_s: float) -> dict[str, float]:
        used = mfu(tokens_per_s, self._flops, self._chips, self._peak)
        return {"tokens_per_s": tokens_per_s} | ({} if used is None else {"mfu": used})


def _compiled(step: Any, arguments: tuple[Any, ...]) -> Any:
    return step.lower(*arguments).compile()


def _sinks(run: RunConfig, done: int, given: Sequence[MetricSink]) -> Sinks:
    """All metric sinks, on the first process: only the failure of ``metrics.jsonl`` ends a run."""
    if not Processes().first:
        return Sinks()
    names = [*(["tensorboard"] if run.report.tensorboard else []), *run.report.sinks]
    named = [DerivedSink(f"sink {name}", partial(SINKS[name], run, done)) for name in names]
    others = [DerivedSink(type(sink).__name__, lambda sink=sink: sink) for sink in given]
    return Sinks(SINKS["jsonl"](run, done), *named, *others)


def _callbacks(run: RunConfig, given: Sequence[Callback]) -> list[Callback]:
    return [*(CALLBACKS[name](run) for name in run.train.callbacks), *given]
