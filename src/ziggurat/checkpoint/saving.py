"""One save in the background: written, retried, and given up without ending the training."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ziggurat.checkpoint import quarantine
from ziggurat.checkpoint.agreement import reason, together
from ziggurat.checkpoint.config import CheckpointConfig
from ziggurat.checkpoint.content import StepContent
from ziggurat.checkpoint.digests import Known
from ziggurat.checkpoint.manifest import DamagedError, Manifest
from ziggurat.checkpoint.steps import step_name, verify_step
from ziggurat.checkpoint.writer_lock import WriterLock
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError, EnvironmentError
from ziggurat.core.json_types import Json
from ziggurat.mesh import Processes

_log = logging.getLogger(__name__)


class Save:
    """One save: writes a step's content into ``directory/step_<step>``.

    Every process runs the same calls; each part of the work ends with all of them agreeing whether
    it succeeded, so that they retry or give up together.
    """

    def __init__(
        self,
        directory: Path,
        step: int,
        config: CheckpointConfig,
        lock: WriterLock,
        processes: Processes,
    ):
        self.step, self.config = step, config
        self._lock, self._processes = lock, processes
        self._final = directory / step_name(step)
        self._writing = self._final.with_name(f"{self._final.name}{atomic.TEMPORARY}writing")
        self._named = False
        self._name = f"checkpoint/{directory}/{step}"

    def admit(self, make: Callable[[], StepContent]) -> StepContent:
        """Take the writer's lock, and refuse a step of which there is an intact one already.

        A damaged one is set aside. What the file system refuses is left to :meth:`run`, which
        retries.

        Raises:
            CheckpointError: something cannot be stored, the step is there already, or another
                process is saving here; on all processes.
        """
        made: list[StepContent] = []

        def look() -> None:
            made.append(make())
            if self._processes.first:
                try:
                    self._admit()
                except OSError as error:
                    _log.debug("step %d: %s", self.step, error)

        self._together("admit", look)
        return made[0]

    def run(self, content: StepContent) -> tuple[Manifest | None, int]:
        """Write the content; returns the manifest (on the first process) and the number of
        attempts.

        Raises:
            CheckpointError: it could not be written, after all retries; nothing is left of it.
        """
        attempt, pause = 0, self.config.retry_wait_s
        while True:
            attempt += 1
            try:
                return self._attempt(content), attempt
            except Exception as error:
                self._drop()
                if attempt > self.config.retries or isinstance(error, EnvironmentError):
                    directory = self._writing.parent
                    raise save_error(self.step, directory, error, attempt) from error
                _log.debug("step %d, attempt %d: %s", self.step, attempt, error)
                time.sleep(pause)
                pause *= 2

    def _attempt(self, content: StepContent) -> Manifest | None:
        def begin() -> None:
            self._admit()
            self._drop()
            self._writing.mkdir()
            content.begin(self._writing)

        self._together("begin", self._on_first(begin))
        index = self._processes.index
        parts = self._together("write", lambda: content.write(self._writing, index))
        known = {name: Known(*entry) for part in parts for name, entry in part.items()}
        manifest: list[Manifest] = []

        def commit() -> None:
            self._named = True
            manifest.append(content.commit(self._writing, self._final, known))

        self._together("commit", self._on_first(commit))
        return manifest[0] if manifest else None

    def _admit(self) -> None:
        self._lock.acquire()
        if self._named and self._final.exists():  # ours: a commit that failed after its rename
            atomic.remove_directory(self._final)
        if self._final.exists():
            try:
                verify_step(self._final)
            except DamagedError as error:
                if quarantine.set_aside(self._final, error) is None:
                    raise
            else:
                raise CheckpointError(
                    f"checkpoint {self._final}",
                    found="an intact checkpoint of this step",
                    expected="none",
                    fix=f"call discard_after({self.step - 1}) to resume from an older step",
                )

    def _drop(self) -> None:
        """Remove what an attempt left; what cannot be removed is swept by the next writer."""
        if self._processes.first:
            shutil.rmtree(self._writing, ignore_errors=True)

    def _on_first(self, call: Callable[[], None]) -> Callable[[], None]:
        return call if self._processes.first else lambda: None

    def _together(self, part: str, call: Callable[[], Json]) -> list[Json]:
        return together(self._processes, f"{self._name}/{part}", call)


def save_error(step: int, directory: Path, error: BaseException, attempts: int) -> CheckpointError:
    """Error line that says why a step was not saved."""
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    return CheckpointError(
        f"checkpoint step {step}",
        found=f"it could not be written{tried} ({reason(error)})",
        expected=f"a writable directory with room at {directory}",
        fix="free space or choose another directory; older checkpoints are untouched",
    )
