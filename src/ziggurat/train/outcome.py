"""A trained run: its last state, its model, its metrics and why it ended."""

import dataclasses
import signal

from ziggurat.core.config import Resolved
from ziggurat.core.errors import TrainError
from ziggurat.core.json_types import JsonObject
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.profile.timers import StepTimer
from ziggurat.train.config import RunConfig
from ziggurat.train.experiment import Experiment
from ziggurat.train.metrics import read_metrics
from ziggurat.train.run_directory import RunDirectory
from ziggurat.train.state import TrainState


@dataclasses.dataclass(repr=False)
class TrainingOutcome:
    """How a run ended."""

    run: Resolved[RunConfig]
    directory: RunDirectory
    experiment: Experiment
    state: TrainState
    timer: StepTimer
    status: str
    """``finished`` or why it ended early."""
    program_memory: dict[str, int]
    """Bytes of the compiled step, see ``profile.memory.compiled_memory``."""
    ended_by: signal.Signals | None = None
    """The signal that ended it before its last step."""

    def __repr__(self) -> str:
        done, total = int(self.state.step), self.run.value.train.steps
        return (
            f"TrainingOutcome({self.status!r}, step {done:,} of {total:,}, {self.directory.path})"
        )

    @property
    def metrics(self) -> list[JsonObject]:
        """One row a step, as ``metrics.jsonl`` has them."""
        return read_metrics(self.directory.metrics)

    @property
    def model(self) -> Pretrained:
        """The trained language model, ready for ``ziggurat.generate``.

        Raises:
            TrainError: the run trains nothing that writes text.
        """
        make = self.experiment.parts.pretrained
        if make is None:
            kind = self.run.value.objective.kind
            raise TrainError("model of the run", found=f"objective {kind}", expected="text")
        return make(self.state.evaluated)

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells count, for a run that a signal ended; else 0."""
        return 0 if self.ended_by is None else 128 + self.ended_by

    @property
    def finished(self) -> bool:
        return self.status == "finished"
