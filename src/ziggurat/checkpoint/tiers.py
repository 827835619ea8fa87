"""The checkpoints of a run over all its tiers, such as memory, disk and object store.

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

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jaxtyping import PyTree

from ziggurat.checkpoint.config import TIERS, CheckpointConfig, StoreTier, TierConfig
from ziggurat.checkpoint.copy_tier import CopyTier
from ziggurat.checkpoint.disk_tier import DiskTier
from ziggurat.checkpoint.identity import run_identity
from ziggurat.checkpoint.manifest import DamagedError
from ziggurat.checkpoint.step_reader import StepInfo
from ziggurat.checkpoint.step_store import StepStore, StoreError, whole_steps
from ziggurat.checkpoint.tier import Tier, TierContext, UnsuitableError
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.mesh import Processes

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class TierReport:
    """How one save went, tier by tier."""

    step: int
    blocking_s: float = 0.0
    """Seconds the caller was held by all tiers together."""
    tiers: dict[str, float] = dataclasses.field(default_factory=dict)
    """Names of the tiers that took the step, and the seconds each held the caller."""


class Newest(NamedTuple):
    """A step and the nearest tier that has it."""

    step: int
    tier: str
    """Name of the tier."""


class Recovered(NamedTuple):
    """Result of :meth:`Tiers.restore`."""

    step: int
    arrays: dict[str, PyTree]
    records: JsonObject
    tier: str
    """Name of the tier it came from."""
    seconds: float


class Tiers:
    """The checkpoints of one run, in all configured tiers. All processes make the same calls.

    Tiers are in :attr:`tiers`, nearest first: those that end with the run's processes, the disk,
    those that hold copies of it.

    Args:
        directory: where the ``step_*`` directories live.
        config: intervals, retention, tiers.
        identity: what tells this run from others that had the same directory, such as a name drawn
            when the run's directory was made together with the settings that decide its course.
            Needed with ``config.memory``, see :mod:`ziggurat.checkpoint.identity`.
        processes: those that train together.
        accept: looks at a step directory that came from a store before it is used, and raises if it
            is another run's.

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
        self.disk = DiskTier(self.directory, self.config, self.processes)
        self.tiers = self._built(identity, accept)

    def __enter__(self) -> "Tiers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finished=kind is None)

    def __getitem__(self, name: str) -> Tier:
        """A tier by name."""
        return next(tier for tier in self.tiers if tier.name == name)

    @property
    def problems(self) -> dict[str, CheckpointError]:
        """Last failure of each tier that is still in trouble, as far as this process knows."""
        found = {tier.name: tier.error for tier in self.tiers}
        return {name: error for name, error in found.items() if error is not None}

    @property
    def newest_saved(self) -> int | None:
        """Newest step that this process has saved to disk."""
        return self.disk.checkpoints.newest_saved

    def due(self, step: int) -> bool:
        """Whether any tier asks for a save after ``step`` steps."""
        return any(tier.due(step) for tier in self.tiers)

    def save(
        self,
        step: int,
        arrays: Mapping[str, PyTree],
        records: JsonMapping | None = None,
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
        report, taken = TierReport(step), list[Tier]()
        for tier in self.tiers:
            if not final and not tier.due(step):
                continue
            began = time.perf_counter()
            given = (step, arrays, records or {}, files or {})
            if tier.save(*given, metrics=metrics or {}, final=final):
                report.tiers[tier.name] = time.perf_counter() - began
                taken.append(tier)
        if final:
            for tier in taken:
                tier.wait()
        report.blocking_s = time.perf_counter() - start
        return report

    def wait(self, *, strict: bool = True) -> None:
        """Wait for what is being saved to memory and disk, but not for copies in stores.

        Args:
            strict: raise if the newest save to disk failed.

        Raises:
            CheckpointError: it failed.
        """
        for tier in self.tiers:
            tier.wait(strict=strict)

    def steps(self) -> list[StepInfo]:
        """Step directories on disk, oldest first."""
        return self.disk.checkpoints.steps()

    def latest(self) -> Newest | None:
        """The newest step that any tier has whole, and the nearest tier that has it.

        Raises:
            StoreError: no other tier has one, and a store does not answer.
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
        if len(self.tiers) == 1 or not candidates:  # the disk chooses, or says what is wrong
            restored = self.disk.checkpoints.restore(step, like, cast=cast, partial=partial)
            return Recovered(*restored, self.disk.name, time.perf_counter() - start)
        damage: CheckpointError | None = None
        for candidate in candidates:
            tier = self[candidate.tier]
            try:
                values = tier.restore(candidate.step, like, cast=cast, partial=partial)
                return Recovered(candidate.step, *values, tier.name, time.perf_counter() - start)
            except (DamagedError, UnsuitableError) as error:
                damage = damage or error
                _log.warning(
                    "step %d in tier %s cannot be used, trying the next: %s", *candidate, error
                )
        raise CheckpointError(
            f"no intact checkpoint of {self.directory} in any tier", found=str(damage)
        ) from damage

    def discard_after(self, step: int) -> list[int]:
        """Remove all newer steps from all tiers; returns those that all processes knew."""
        gone = [tier.discard_after(step) for tier in reversed(self.tiers)]
        return sorted(set().union(*gone))

    def close(self, finished: bool = False) -> None:
        """Finish what is under way.

        Args:
            finished: the run need not be resumed from memory: its keepers end now, unless they have
                something newer than the disk, and copies to stores are waited for. Otherwise
                snapshots stay for ``linger_s``.

        Raises:
            CheckpointError: the run finished, and its last save to disk failed.
        """
        with contextlib.ExitStack() as closing:  # the disk first, and all though one fails
            for tier in reversed(self.tiers):
                if tier is not self.disk:
                    closing.callback(self._close, tier, finished)
            closing.callback(self.disk.close, finished)

    def _close(self, tier: Tier, finished: bool) -> None:
        if finished and not tier.lasting:
            finished = not tier.holds_newer(self.disk.newest())
        tier.close(finished)

    def _built(
        self, identity: str | None, accept: Callable[[Path], None] | None
    ) -> tuple[Tier, ...]:
        def drawn() -> str:
            claim = self.disk.checkpoints.claim
            return run_identity(self.directory, identity, self.processes, claim)

        built = list[Tier]()
        for name, node in self.config.named_tiers().items():
            context = TierContext(
                name, self.directory, self.config, self.processes, self.disk, drawn, accept
            )
            built.append(_opened(node, context))
        near = [tier for tier in built if not tier.lasting]
        return (*near, self.disk, *(tier for tier in built if tier.lasting))

    def _candidates(self) -> list[Newest]:
        """Steps of all tiers, newest first and of the same step the nearest first."""
        # A tier may answer on the first process alone, the disk does.
        found, silent = self.processes.agree("steps", self._found())
        if silent and not any(found.values()):  # nobody knows whether there is a step
            raise StoreError(silent)
        every = [Newest(step, tier.name) for tier in self.tiers for step in found[tier.name]]
        return sorted(every, key=lambda one: -one.step)

    def _found(self) -> tuple[dict[str, list[int]], str]:
        """Steps of each tier, and why one does not answer."""
        found, silent = dict[str, list[int]](), ""
        for tier in self.tiers:
            try:
                found[tier.name] = tier.refresh()
            except CheckpointError as error:
                found[tier.name], silent = [], str(error)
                _log.warning("%s; continuing without it", error)
        return found, silent


def stored_steps(config: CheckpointConfig) -> list[int]:
    """Steps that a run has in stores, oldest first, looked up without opening the run.

    Raises:
        StoreError: a store does not answer.
    """
    found: set[int] = set()
    for node in config.named_tiers().values():
        kind = TIERS[node.kind]
        if issubclass(kind, StepStore):
            found |= set(whole_steps(kind(node)))
    return sorted(found)


def _opened(config: TierConfig, context: TierContext) -> Tier:
    """A tier of its kind; a store gets a tier that copies to it."""
    kind = TIERS[config.kind]
    if issubclass(kind, StepStore):
        assert isinstance(config, StoreTier)
        return CopyTier(partial(kind, config), config, context)
    return kind.open(config, context)
