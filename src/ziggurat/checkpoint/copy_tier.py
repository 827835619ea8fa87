"""A store as a tier: steps are copied to it from the disk, and fetched back to the disk."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxtyping import PyTree

from ziggurat.checkpoint.config import StoreTier
from ziggurat.checkpoint.copies import Copies
from ziggurat.checkpoint.manifest import DamagedError
from ziggurat.checkpoint.step_store import StepStore, StoreError
from ziggurat.checkpoint.tier import Tier, TierContext
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import JsonMapping, JsonObject


class CopyTier(Tier):
    """Copies of the disk's steps in a store, which only the first process talks to.

    A save holds nobody: the copy begins when the step is on disk, and retention leaves the step
    there until it is copied.

    Args:
        store: opens the store.
        config: how often, and what is kept.
        context: the run.

    Raises:
        CheckpointError: the settings name no store.
        EnvironmentError: a package that the store needs is not installed.
    """

    lasting = True

    def __init__(self, store: Callable[[], StepStore], config: StoreTier, context: TierContext):
        self.name, self.config = context.name, config
        self.copies: Copies | None = None
        """Only on the first process."""
        self._context, self._disk = context, context.disk
        if context.processes.first:
            settings = context.config
            self.copies = Copies(store(), config, settings.retries, settings.retry_wait_s)
            self._disk.before_save.append(self.copies.hold)

    @property
    def error(self) -> CheckpointError | None:
        return None if self.copies is None else self.copies.error

    def due(self, step: int) -> bool:
        return step > 0 and step % self.config.every == 0

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
        if self.copies is not None:
            self.copies.send(step, self._disk.path(step), self._disk.when_saved())
        return True

    def wait(self, *, strict: bool = True) -> None:
        """Return at once: a copy holds nobody, and its failure is no failure of the save."""

    def refresh(self) -> list[int]:
        return [] if self.copies is None else self.copies.steps()

    def restore(
        self, step: int, like: Mapping[str, PyTree], *, cast: bool = False, partial: bool = False
    ) -> tuple[dict[str, PyTree], JsonObject]:
        problem = self._context.processes.once("fetch a step", lambda: self._fetch(step))
        if problem:
            raise DamagedError(problem)
        return self._disk.restore(step, like, cast=cast, partial=partial)

    def discard_after(self, step: int) -> list[int]:
        if self.copies is not None:
            self.copies.discard_after(step)
        return []

    def close(self, finished: bool) -> None:
        if self.copies is not None:
            self.copies.close(wait=finished)

    def _fetch(self, step: int) -> str:
        """Bring a step from the store to the disk; returns what is wrong with it."""
        assert self.copies is not None
        temporary = atomic.temporary_beside(self._disk.path(step))
        try:
            self._disk.checkpoints.claim()  # from now on nobody sweeps temporaries here
            temporary.mkdir()
            self.copies.download(step, temporary)
            if self._context.accept is not None:
                self._context.accept(temporary)
            # an intact one on disk would have come before the store's
            self._disk.checkpoints.adopt(temporary, step)
        except (DamagedError, StoreError, OSError) as error:
            return str(error)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return ""
