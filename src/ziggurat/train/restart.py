"""Beginning a run anew under its name, with the files of the earlier attempt kept."""

from ziggurat.checkpoint import StepReader
from ziggurat.checkpoint.tiers import stored_steps
from ziggurat.core.errors import TrainError
from ziggurat.train.config import RunConfig
from ziggurat.train.run_directory import RunDirectory


def set_aside(run: RunConfig) -> str | None:
    """Move the files of an earlier attempt in the run's directory into ``earlier-N/``.

    For ``--restart``, which is for a run whose checkpoints are gone.

    Returns:
        The new directory; None if there was nothing to move.

    Raises:
        TrainError: there is a checkpoint to resume from.
        StoreError: a store of checkpoints does not answer.
    """
    directory = RunDirectory(run.directory)
    newest = StepReader(directory.checkpoints).latest()
    steps = [] if newest is None else [newest.step]
    steps = steps or stored_steps(run.checkpoint)
    if steps:
        raise TrainError(
            f"--restart of run {directory.path}",
            found=f"a checkpoint of step {steps[-1]}",
            expected="a run whose checkpoints are gone",
            fix="leave out --restart to resume it, or give the new run another name",
        )
    aside = directory.set_aside()
    return None if aside is None else str(aside)
