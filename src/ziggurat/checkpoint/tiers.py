"""The checkpoints of a run over all tiers: memory, disk, persistent store.

Each tier has its own interval. A restore takes the newest step that any of them has whole, of the
same step the nearest, and where a tier turns out damaged, the next one. With neither ``memory`` nor
``persistent`` configured this is :class:`ziggurat.checkpoint.manager.Checkpoints`.

>>> import tempfile
>>> import numpy as np
>>> with tempfile.TemporaryDirectory() as folder:
...     with Tiers(Path(folder), CheckpointConfig(every=2)) as tiers:
...         for step in range(1, 4):
...             if tiers.due(step):
...                 report = tiers.save(step, {"params": {"w": np.ones(3) * step}})
...         tiers.wait()
...         restored = tiers.restore(None, {"params": {"w": np.zeros(3)}})
...         restored.step, restored.tier, restored.arrays["params"]["w"]
(2, 'disk', array([2., 2., 2.]))
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import PyTree

from ziggurat.checkpoint.config import CheckpointConfig
from ziggurat.checkpoint.identity import run_identity
from ziggurat.checkpoint.manager import Checkpoints, SaveReport
from ziggurat.checkpoint.manifest import DamagedError
from ziggurat.checkpoint.memory.tier import MemorySnapshots
from ziggurat.checkpoint.persistent import PersistentStore, StoreError
from ziggurat.checkpoint.step_reader import StepInfo
from ziggurat.checkpoint.steps import step_name
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError
from ziggurat.mesh import Processes

_log = logging.getLogger(__name__)
Tier = Literal["memory", "disk", "persistent"]
_NEAREST: tuple[Tier, ...] = ("memory", "disk", "persistent")


@dataclasses.dataclass
class TierReport:
    """How one save went, tier by tier."""

    step: int
    blocking_s: float
    """Seconds the caller was held by all tiers together."""
    memory_s: float | None = None
    """Seconds held by the snapshot in memory; None where none was due."""
    disk: SaveReport | None = None
    """Of the save to disk; None where none was due."""
    persistent: bool = False
    """Whether the step goes to the persistent store, which holds nobody."""


class Newest(NamedTuple):
    """A step and the nearest tier that has it."""

    step: int
    tier: Tier


class Recovered(NamedTuple):
    """Result of :meth:`Tiers.restore`."""

    step: int
    arrays: dict[str, PyTree]
    records: dict[str, Any]
    tier: Tier
    seconds: float


class Tiers:
    """The checkpoints of one run, in all configured tiers. All processes make the same calls.

    Args:
        directory: where the ``step_*`` directories live.
        config: intervals, retention, tiers.
        identity: what tells this run from others that had the same directory, such as a name drawn
            when the run's directory was made together with the settings that decide its course.
            Needed with ``config.memory``, see :mod:`ziggurat.checkpoint.identity`.
        processes: those that train together.
        accept: looks at a step directory that came from the persistent store before it is used, and
            raises if it is another run's.

    Raises:
        CheckpointError: no identity, or the store's URL is of no known kind.
        EnvironmentError: memory snapshots do not work here, or a package is missing.
    """

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig | None = None,
        *,
        identity: str | None = None,
        processes: Processes | None = None,
        accept: Callable[[Path], None] | None = None,
    ):
        self.directory = Path(directory).absolute()
        self.config = config or CheckpointConfig()
        self.processes = processes or Processes()
        self.disk = Checkpoints(self.directory, self.config, self.processes)
        self.memory: MemorySnapshots | None = None
        self.store: PersistentStore | None = None
        """Only on the first process."""
        self._accept = accept
        if self.config.memory is not None:
            name = run_identity(self.directory, identity, self.processes, self.disk.claim)
            self.memory = MemorySnapshots(self.directory, self.config.memory, name, self.processes)
        if self.config.persistent is not None and self.processes.first:
            self.store = PersistentStore(
                self.config.persistent, self.config.retries, self.config.retry_wait_s
            )

    def __enter__(self) -> "Tiers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finished=kind is None)

    @property
    def problems(self) -> dict[Tier, CheckpointError]:
        """Last failure of each tier that is still in trouble, as far as this process knows."""
        saved = self.disk.last_save
        found: dict[Tier, CheckpointError | None] = {
            "memory": self.memory and self.memory.error,
            "disk": self.disk.last_error if saved is not None and saved.error else None,
            "persistent": self.store and self.store.error,
        }
        return {tier: error for tier, error in found.items() if error is not None}

    def due(self, step: int) -> bool:
        """Whether any tier asks for a save after ``step`` steps."""
        return self.disk.due(step) or self._memory_due(step)

    def save(
        self,
        step: int,
        arrays: Mapping[str, PyTree],
        records: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes | Path] | None = None,
        *,
        metrics: Mapping[str, float] | None = None,
        final: bool = False,
    ) -> TierReport:
        """Save into the tiers that are due; on return the arrays may be donated or changed.

        Args:
            step: number of finished training steps.
            arrays: trees of arrays by item name.
            records: JSON values.
            files: for disk and persistent store only.
            metrics: what retention may compare.
            final: the run ends here: save to disk and to the persistent store whatever their
                intervals; on return it is on disk.

        Raises:
            CheckpointError: as :meth:`Checkpoints.save`, of the disk tier. Failures of the other
                tiers are logged and in :attr:`problems`.
        """
        start = time.perf_counter()
        report = TierReport(step, 0.0)
        if self.memory is not None and self._memory_due(step) and not final:
            report.memory_s = self.memory.save(step, arrays, records or {})
        if final or self.disk.due(step):
            self._save_to_disk(report, arrays, records, files, metrics, final)
        report.blocking_s = time.perf_counter() - start
        return report

    def wait(self, *, strict: bool = True) -> None:
        """Wait for what is being saved to memory and disk, but not for the persistent store.

        Args:
            strict: raise if the newest save to disk failed.

        Raises:
            CheckpointError: it failed.
        """
        if self.memory is not None:
            self.memory.wait()
        self.disk.wait(strict=strict)

    def steps(self) -> list[StepInfo]:
        """Step directories on disk, oldest first."""
        return self.disk.steps()

    def latest(self) -> Newest | None:
        """The newest step that any tier has whole, and the nearest tier that has it.

        Raises:
            StoreError: no other tier has one, and the persistent store does not answer.
        """
        candidates = self._candidates()
        return candidates[0] if candidates else None

    def restore(
        self,
        step: int | None,
        like: Mapping[str, PyTree],
        *,
        cast: bool = False,
        partial: bool = False,
    ) -> Recovered:
        """Arrays in the structure and shardings of ``like``, and the records.

        Args:
            step: which step, or None for the newest.
            like: trees of ``jax.ShapeDtypeStruct`` (or arrays) for the items wanted.
            cast: convert between float types, or integer types, where ``like`` differs.
            partial: there may be leaves that ``like`` does not ask for.

        Raises:
            CheckpointError: no tier has it, or as :meth:`Checkpoints.restore`.
        """
        start = time.perf_counter()
        candidates = self._candidates()
        if step is not None:
            candidates = [candidate for candidate in candidates if candidate.step == step]
        if all(tier == "disk" for _, tier in candidates):
            restored = self.disk.restore(step, like, cast=cast, partial=partial)
            return Recovered(*restored, "disk", time.perf_counter() - start)
        damage: CheckpointError | None = None
        for candidate in candidates:
            try:
                values = self._restore_from(candidate, like, cast, partial)
                return Recovered(*values, candidate.tier, time.perf_counter() - start)
            except CheckpointError as error:
                if candidate.tier != "memory" and not isinstance(error, DamagedError):
                    raise
                damage = damage or error
                _log.warning(
                    "step %d in tier %s cannot be used, trying the next: %s", *candidate, error
                )
        raise CheckpointError(
            f"no intact checkpoint of {self.directory} in any tier", found=str(damage)
        ) from damage

    def discard_after(self, step: int) -> list[int]:
        """Remove all newer steps from all tiers; returns those removed from memory and disk."""
        if self.store is not None:
            self.store.discard_after(step)
        gone = set(self.disk.discard_after(step))
        if self.memory is not None:
            gone |= set(self.memory.discard_after(step))
        return sorted(gone)

    def close(self, finished: bool = False) -> None:
        """Finish what is under way.

        Args:
            finished: the run need not be resumed from memory: its keepers end now, unless they have
                something newer than the disk, and copies to the persistent store are waited for.
                Otherwise snapshots stay for ``linger_s``.

        Raises:
            CheckpointError: the run finished, and its last save to disk failed.
        """
        try:
            self.disk.close(strict=finished)
        finally:
            if self.memory is not None:
                self.memory.close(finished and self._is_older(self.memory))
            if self.store is not None:
                self.store.close(wait=finished)

    def _is_older(self, memory: MemorySnapshots) -> bool:
        """Whether the disk has all that is in memory; all processes answer alike."""
        memory.wait()
        newest = self.processes.agree("newest on disk", self._newest_on_disk())
        return not memory.steps or memory.steps[-1] <= newest

    def _memory_due(self, step: int) -> bool:
        every = self.config.memory.every if self.config.memory is not None else 0
        return every > 0 and step > 0 and step % every == 0

    def _newest_on_disk(self) -> int:
        newest = self.disk.latest()
        return -1 if newest is None else newest.step

    def _save_to_disk(
        self,
        report: TierReport,
        arrays: Mapping[str, PyTree],
        records: Mapping[str, Any] | None,
        files: Mapping[str, bytes | Path] | None,
        metrics: Mapping[str, float] | None,
        final: bool,
    ) -> None:
        step = report.step
        report.persistent = self.config.persistent is not None and (
            final or step % self.config.persistent.every == 0
        )
        if self.store is not None:
            self.disk.wait(strict=False)
            self.store.hold()  # before this save's retention can take what waits to be copied
        if not (final and self._is_on_disk(step)):
            report.disk = self.disk.save(step, arrays, records, files, metrics)
        if self.store is not None and report.persistent:
            path = self.directory / step_name(step)
            self.store.send(step, path, _when_on_disk(report.disk))
        if final:
            self.disk.wait()

    def _is_on_disk(self, step: int) -> bool:
        """Whether an earlier save of this very step succeeded; all processes answer alike."""
        self.disk.wait(strict=False)
        return self.processes.agree("final step on disk", self._newest_on_disk()) == step

    def _candidates(self) -> list[Newest]:
        """Steps of all tiers, newest first and of the same step the nearest first."""
        found: dict[Tier, list[int]] = {tier: [] for tier in _NEAREST}
        if self.memory is not None:
            self.memory.refresh()
            found["memory"] = self.memory.steps
        if self.config.memory is None and self.config.persistent is None:
            found["disk"] = [info.step for info in self.disk.steps() if info.intact]
        else:
            *stored, silent = self.processes.agree("steps", self._stored())
            found["disk"], found["persistent"] = stored
            if silent and not any(found.values()):  # nobody knows whether there is a step
                raise StoreError(silent)
        every = [Newest(step, tier) for tier in _NEAREST for step in found[tier]]
        return sorted(every, key=lambda one: -one.step)

    def _stored(self) -> tuple[list[int], list[int], str]:
        """Steps on disk and in the persistent store, and why the store does not answer."""
        if not self.processes.first:
            return [], [], ""
        copies, silent = list[int](), ""
        if self.store is not None:
            try:
                copies = self.store.steps()
            except StoreError as error:
                silent = str(error)
                _log.warning("%s; continuing without it", error)
        return [info.step for info in self.disk.steps() if info.intact], copies, silent

    def _restore_from(
        self, candidate: Newest, like: Mapping[str, PyTree], cast: bool, partial: bool
    ) -> tuple[int, dict[str, PyTree], dict[str, Any]]:
        step, tier = candidate
        if tier == "memory":
            assert self.memory is not None
            return step, *self.memory.restore(step, like, cast=cast, partial=partial)
        if tier == "persistent":
            problem = self.processes.once("fetch a step", lambda: self._fetch(step))
            if problem:
                raise DamagedError(problem)
        return self.disk.restore(step, like, cast=cast, partial=partial)

    def _fetch(self, step: int) -> str:
        """Bring a step from the persistent store to the disk; returns what is wrong with it."""
        assert self.store is not None
        temporary = atomic.temporary_beside(self.directory / step_name(step))
        try:
            self.disk.claim()  # from now on nobody sweeps temporaries here
            temporary.mkdir()
            self.store.download(step, temporary)
            if self._accept is not None:
                self._accept(temporary)
            self.disk.adopt(temporary, step)  # an intact one would have come before the store
        except (DamagedError, StoreError, OSError) as error:
            return str(error)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return ""


def _when_on_disk(report: SaveReport | None) -> Callable[[], bool]:
    """Waits for a save; whether it succeeded."""

    def ready() -> bool:
        while report is not None and report.total_s is None:
            if report.error is not None:
                return False
            time.sleep(0.05)
        return True

    return ready
