"""The disk as a tier: the step directories of a run, written by ``Checkpoints``."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxtyping import PyTree

from ziggurat.checkpoint.config import CheckpointConfig
from ziggurat.checkpoint.manager import Checkpoints, SaveReport
from ziggurat.checkpoint.steps import step_name
from ziggurat.checkpoint.tier import Tier
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.mesh import Processes


class DiskTier(Tier):
    """Step directories on disk; tiers that copy them hang on to it.

    Args:
        directory: where the ``step_*`` directories live.
        config: interval, retention and safety.
        processes: those that train together.
    """

    name = "disk"
    lasting = True

    def __init__(self, directory: Path, config: CheckpointConfig, processes: Processes):
        self.checkpoints = Checkpoints(directory, config, processes)
        self.before_save: list[Callable[[], None]] = []
        """Called before each save, when all earlier ones are on disk: retention follows the save,
        and who still has to read an older step keeps it then."""
        self._processes = processes
        self._report: SaveReport | None = None

    @property
    def error(self) -> CheckpointError | None:
        saved = self.checkpoints.last_save
        return self.checkpoints.last_error if saved is not None and saved.error else None

    def due(self, step: int) -> bool:
        return self.checkpoints.due(step)

    def save(
        self,
        step: int,
        arrays: Mapping[str, PyTree],
        records: JsonMapping,
        files: Mapping[str, bytes | Path],
        *,
        metrics: Mapping[str, float],
        final: bool,
    ) -> bool:
        if self.before_save:
            self.checkpoints.wait(strict=False)
            for call in self.before_save:
                call()
        self._report = None
        if final and self._is_saved(step):
            return False
        self._report = self.checkpoints.save(step, arrays, records, files, metrics)
        return True

    def wait(self, *, strict: bool = True) -> None:
        self.checkpoints.wait(strict=strict)

    def refresh(self) -> list[int]:
        if not self._processes.first:
            return []
        return [info.step for info in self.checkpoints.steps() if info.intact]

    def restore(
        self, step: int, like: Mapping[str, PyTree], *, cast: bool = False, partial: bool = False
    ) -> tuple[dict[str, PyTree], JsonObject]:
        restored = self.checkpoints.restore(step, like, cast=cast, partial=partial)
        return restored.arrays, restored.records

    def discard_after(self, step: int) -> list[int]:
        return self.checkpoints.discard_after(step)

    def close(self, finished: bool) -> None:
        """Finish the save under way.

        Raises:
            CheckpointError: the run finished, and its last save failed.
        """
        self.checkpoints.close(strict=finished)

    def newest(self) -> int:
        """Newest intact step, -1 without one; the same on all processes."""
        found = self.checkpoints.latest()
        return self._processes.agree("newest on disk", -1 if found is None else found.step)

    def path(self, step: int) -> Path:
        """Directory of a step, there or not."""
        return self.checkpoints.directory / step_name(step)

    def when_saved(self) -> Callable[[], bool]:
        """A function that waits for the newest save; it returns whether that succeeded."""
        report = self._report

        def ready() -> bool:
            while report is not None and report.total_s is None:
                if report.error is not None:
                    return False
                time.sleep(0.05)
            return True

        return ready

    def _is_saved(self, step: int) -> bool:
        """Whether an earlier save of this very step succeeded."""
        self.checkpoints.wait(strict=False)
        return self.newest() == step
