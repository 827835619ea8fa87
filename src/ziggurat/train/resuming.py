"""Which keys may change when a run is resumed, and what a change does.

Every key of the run file is in one of four groups. A key in none of the last three decides the
result, and a run is refused under another value of it; a new key is therefore refused until it is
put into a group.
"""

import dataclasses

import numpy as np

from ziggurat.core import config
from ziggurat.core.config import Resolved
from ziggurat.core.errors import ConfigError
from ziggurat.optim import build_schedule
from ziggurat.train.config import FromPython, RunConfig

NO_EFFECT = (
    "train.max_bad_steps",
    "train.stop_within_s",
    "train.compile_cache",
    "evaluation",
)
NO_EFFECT += ("train.callbacks",)
NO_EFFECT += ("checkpoint", "profile", "report", "output", "name")
NO_EFFECT += ("data.workers", "data.worker_patience_s", "data.prefetch")
NO_EFFECT += ("objective.evaluation", "objective.reward.processes")
"""Keys, and tables whose keys all are such, that leave every parameter as it is, bit for bit."""
BY_CONTENT = ("data.sources", "data.source", "data.mixture", "data.epochs")
"""Keys that tell where data lies and how it is mixed. The data's own state compares what they lead
to, so that the same bytes may lie elsewhere, and a mixture may change for later steps."""
ON_PURPOSE = ("train.steps", "train.accumulate", "mesh", "optimizer.schedule.steps")
"""Keys that change what comes after: how long the run is, the schedule of the learning rate, and
how sums are split (which rounds otherwise)."""
SCHEDULE = "optimizer.schedule.steps"


def resumed(run: Resolved[RunConfig], before: str) -> tuple[Resolved[RunConfig], list[str]]:
    """The run with its schedule fixed, and one line for each key that is another than before.

    A schedule without a length of its own gets that of the run when it begins, and keeps it when
    ``train.steps`` changes: the learning rate of a step never depends on when a run was extended.
    It changes where the run file or the command line gives it another length.

    Args:
        run: as it is asked for.
        before: the run file under which it was trained so far, as TOML; empty for a new run.

    Raises:
        ConfigError: a key that decides the result is another one.
    """
    old = _with_schedule(config.parse(RunConfig, before).value, None) if before else None
    new = _with_schedule(run.value, old)
    provenance = dict(run.provenance)
    if new is not run.value:
        provenance[SCHEDULE] = "train.steps" if old is None else "the run so far"
    made = Resolved(new, provenance)
    if old is None:
        return made, []
    check_same_run(old, new)
    rows = differing(old, new)
    lines = [f"{key}: {then} -> {now}{_rates(key, old, new)}" for key, (then, now) in rows.items()]
    return made, [line for line in lines if not line.startswith(("name: ", "output: "))]


def schedule_steps(run: RunConfig) -> int | None:
    """Number of steps over which the learning rate changes; ``None`` for a schedule without end."""
    if isinstance(run.optimizer, FromPython):
        return None
    own = getattr(run.optimizer.schedule, "steps", None)
    ends = any(field.name == "steps" for field in dataclasses.fields(run.optimizer.schedule))
    return (own or run.train.steps) if ends else None


def _with_schedule(run: RunConfig, old: RunConfig | None) -> RunConfig:
    steps = schedule_steps(run)
    if steps is None or isinstance(run.optimizer, FromPython):
        return run
    schedule = run.optimizer.schedule
    if getattr(schedule, "steps", None) is not None:
        return run
    if old is not None:
        steps = schedule_steps(old) or steps
    fixed = dataclasses.replace(schedule, steps=steps)
    return dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, schedule=fixed))


def _rates(key: str, old: RunConfig, new: RunConfig) -> str:
    """Effect of a change of length on the learning rate."""
    end, steps = schedule_steps(new), new.train.steps
    if key == SCHEDULE:
        at = min(old.train.steps, steps)
        then, now = (rate(run, at) for run in (old, new))
        return f" (learning rate of step {at}: {then:.3g} -> {now:.3g})"
    if key == "train.steps" and end is not None and steps > end:
        last = rate(new, end)
        return f" (from step {end} on the learning rate stays {last:.3g}; {SCHEDULE} changes that)"
    return ""


def rate(run: RunConfig, step: int) -> float:
    """Learning rate of a step, by an optimizer node of the run file."""
    assert not isinstance(run.optimizer, FromPython), "it has no schedule of the run file"
    made = build_schedule(run.optimizer.schedule, run.train.steps, run.optimizer.lr)
    return float(np.asarray(made(step)))


def differing(old: RunConfig, new: RunConfig) -> dict[str, tuple[str, str]]:
    """Changed keys of two runs, each with its value before and after."""
    before, after = (
        {key: value for key, value, _ in Resolved(run, {}).table()} for run in (old, new)
    )
    return {
        key: (before.get(key, "unset"), after.get(key, "unset"))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    }


def is_free(key: str) -> bool:
    """Whether a key may change when a run is resumed."""
    tables = tuple(f"{prefix}." for prefix in (*NO_EFFECT, *BY_CONTENT, *ON_PURPOSE))
    return f"{key}.".startswith(tables)


def check_same_run(old: RunConfig, new: RunConfig) -> None:
    """Refuse to resume a run under settings that would have given other results.

    Raises:
        ConfigError: the first differing keys, old and new value.
    """
    changed = {key: pair for key, pair in differing(old, new).items() if not is_free(key)}
    if changed:
        shown = list(changed.items())[:3]
        raise ConfigError(
            f"run {new.directory} cannot be resumed",
            found="; ".join(f"{key} = {now}" for key, (_, now) in shown),
            expected="; ".join(f"{key} = {then}" for key, (then, _) in shown),
            fix="give the run another name, or remove its directory",
        )


def check_stored(old: RunConfig, new: RunConfig) -> None:
    """Check that a checkpoint belongs to this run (:func:`check_same_run`), for one that another
    machine wrote and whose run file was not there when the schedule was fixed.

    Raises:
        ConfigError: as there, or the schedule has another length.
    """
    check_same_run(old, new)
    then, now = schedule_steps(old), schedule_steps(new)
    if then != now:
        raise ConfigError(
            f"run {new.directory} cannot be resumed",
            found=f"{SCHEDULE} = {now}",
            expected=f"{then}, as its checkpoints have it",
            fix=f"give {SCHEDULE} = {then}",
        )


def check_length(run: RunConfig, done: int) -> None:
    """Refuse a length that the run has passed already.

    Raises:
        ConfigError: there are more steps in the checkpoint than the run file asks for.
    """
    if done > run.train.steps:
        raise ConfigError(
            f"run {run.directory}: train.steps",
            found=f"{run.train.steps}, though step {done} is done",
            expected=f"at least {done}",
            fix="for a shorter run give it another name; its earlier checkpoints, if kept, are "
            f"in {run.directory / 'checkpoints'}",
        )
