"""Where a run begins: its checkpoints, and the state and step of the newest intact one."""

import logging
from pathlib import Path

import jax

from ziggurat.checkpoint import Tiers
from ziggurat.core import config
from ziggurat.mesh import Processes
from ziggurat.models.loading.step_files import AVERAGE
from ziggurat.train.config import RunConfig
from ziggurat.train.experiment import Experiment
from ziggurat.train.resuming import check_length, check_stored
from ziggurat.train.run_directory import RunDirectory
from ziggurat.train.state import TrainState

_log = logging.getLogger(__name__)


def open_checkpoints(run: RunConfig, directory: RunDirectory, identity: str) -> Tiers:
    """Open the run's checkpoints; a step from a store must belong to this very run."""

    def accept(step: Path) -> None:
        check_stored(config.load(RunConfig, step / "run.toml").value, run)

    return Tiers(directory.checkpoints, run.checkpoint, identity=identity, accept=accept)


def check_saved(directory: RunDirectory, checkpoints: Tiers, everyone: Processes) -> None:
    """Refuse to begin at step 0 when the run had checkpoints; note those that there are."""
    found = checkpoints.latest()

    def check() -> None:
        directory.check_saved(None if found is None else found.step)
        if found is not None and checkpoints[found.tier].lasting:
            directory.note_saved(found.step)

    everyone.once("look for checkpoints", check)


def first_state(experiment: Experiment, checkpoints: Tiers) -> tuple[TrainState, int]:
    """The newest intact checkpoint's state, or the initial one, and the steps behind it."""
    if checkpoints.latest() is None:
        return experiment.initial(), 0
    abstract = experiment.abstract
    restored = checkpoints.restore(None, abstract.arrays)
    _log.info("step %d from %s in %.2f s", restored.step, restored.tier, restored.seconds)
    done = experiment.data.check_state(restored.records["data"])
    check_length(experiment.run, done)
    checkpoints.discard_after(done)
    counters = restored.records["counters"]

    def counter(value: int) -> jax.Array:
        return jax.device_put(jax.numpy.int32(value), experiment.layout.replicated())

    state = TrainState(
        restored.arrays["params"],
        restored.arrays["optimizer"],
        step=counter(done),
        skipped=counter(counters["skipped"]),
        bad_in_a_row=counter(counters["bad_in_a_row"]),
        average=restored.arrays.get(AVERAGE),
    )
    return state, done
