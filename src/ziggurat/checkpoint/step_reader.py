"""The steps of a checkpoint directory for those who only read: no lock, no clean-up, no write.

>>> import tempfile
>>> import numpy as np
>>> from ziggurat.checkpoint import Checkpoints
>>> with tempfile.TemporaryDirectory() as folder:
...     with Checkpoints(Path(folder)) as checkpoints:
...         report = checkpoints.save(10, {"params": {"w": np.ones(3)}})
...     reader = StepReader(Path(folder))
...     [(info.step, info.intact) for info in reader.steps()]
[(10, True)]
"""

import dataclasses
import re
from pathlib import Path

from ziggurat.checkpoint import steps as step_directory
from ziggurat.checkpoint.manifest import check_sizes
from ziggurat.core.errors import CheckpointError

_STEP = re.compile(r"step_(\d{8,})")


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """A checkpoint on disk, as listed."""

    step: int
    path: Path
    bytes: int
    created: float
    """Seconds since 1970 (UTC)."""
    intact: bool
    """Whether the manifest reads and every file has its recorded size. Digests are compared on
    restore; a step found damaged then is set aside, or reported as not intact from then on."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics that it was saved with."""


class StepReader:
    """Read-only view of one run's step directories.

    A user's model directory may be asked for steps too, so nothing here makes, locks, renames or
    removes an entry. :func:`~ziggurat.checkpoint.read_arrays` reads a step that was found;
    :class:`~ziggurat.checkpoint.Checkpoints` saves and restores.

    Args:
        directory: where the ``step_*`` directories live; it need not exist.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory).absolute()
        self._damaged: set[int] = set()

    def steps(self) -> list[StepInfo]:
        """All step directories, oldest first, damaged ones included unless they were set aside."""
        if not self.directory.is_dir():
            return []
        numbered = [(_STEP.fullmatch(entry.name), entry) for entry in self.directory.iterdir()]
        found = sorted((int(match[1]), entry) for match, entry in numbered if match)
        return [self._info(step, path) for step, path in found]

    def latest(self) -> StepInfo | None:
        """The newest intact step, if any."""
        return next((info for info in reversed(self.steps()) if info.intact), None)

    def _info(self, step: int, path: Path) -> StepInfo:
        try:
            manifest = step_directory.manifest_of(step, path)
        except CheckpointError:
            created = path.stat().st_mtime if path.exists() else 0.0
            return StepInfo(step, path, 0, created, intact=False)
        intact = step not in self._damaged and not check_sizes(path, manifest)
        size, created = manifest.total_bytes, manifest.created
        return StepInfo(step, path, size, created, intact, manifest.metrics)
