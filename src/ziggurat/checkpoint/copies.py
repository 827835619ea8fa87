"""Copies of finished step directories in a store, made in the background.

At most one copy is under way and one is waiting; a newer one takes the place of the one that waits.
A store that does not answer is said once and tried again with the next step that is due.
"""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from ziggurat.checkpoint.config import StoreTier
from ziggurat.checkpoint.manifest import DamagedError, Manifest
from ziggurat.checkpoint.retention import reading, steps_to_keep
from ziggurat.checkpoint.step_store import StepStore, StoreError, guarded, whole_steps
from ziggurat.checkpoint.steps import verify_step
from ziggurat.core.errors import CheckpointError

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Copy:
    step: int
    path: Path
    ready: Callable[[], bool]
    held: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    is_held: bool = False

    def hold(self) -> None:
        """Keep retention away from the step directory until :attr:`held` is closed."""
        if not self.is_held:
            self.held.enter_context(reading(self.path))
            self.is_held = True


class Copies:
    """The copies of one run's checkpoints. One process of the run uses them.

    Args:
        store: where they go.
        config: what is kept.
        retries: how often a copy that failed is tried again at once.
        retry_wait_s: pause before the first retry, doubled before each further one (seconds).
    """

    def __init__(
        self, store: StepStore, config: StoreTier, retries: int = 3, retry_wait_s: float = 1.0
    ):
        self.store, self.config = store, config
        self.error: CheckpointError | None = None
        """Error of the last copy; None when it succeeded."""
        self.copied: list[int] = []
        """Steps that this process has copied."""
        self._retries, self._retry_wait_s = retries, retry_wait_s
        self._changed = threading.Condition()
        self._current: _Copy | None = None
        self._waiting: _Copy | None = None
        self._running = False
        self._ending = threading.Event()
        self._discard_after: int | None = None

    def send(
        self,
        step: int,
        path: Path,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Copy a step directory in the background.

        Args:
            step: its step.
            path: where it is, or will be.
            ready: called in the background; waits until it is there. False: it will not be.
        """
        with self._changed:
            replaced = self._waiting
            self._waiting = _Copy(step, path, ready)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="checkpoint-copies", daemon=True).start()
        if replaced is not None:
            _log.warning(
                "step %d is not copied to %s: step %d came before its turn",
                replaced.step,
                self.store.place,
                step,
            )
            replaced.held.close()

    def hold(self) -> None:
        """Keep retention away from what is to be copied; call it when all of that is on disk."""
        with self._changed:
            for copy in (self._current, self._waiting):
                if copy is not None:
                    copy.hold()

    def wait(self) -> None:
        """Wait until nothing is under way; what failed is in :attr:`error`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def close(self, wait: bool = True) -> None:
        """End; without ``wait`` a copy under way is left where it is."""
        if not wait:
            self._ending.set()
            return
        self.wait()

    def steps(self) -> list[int]:
        """Steps that the store has whole, oldest first.

        Raises:
            StoreError: the store does not answer.
        """
        return whole_steps(self.store)

    def download(self, step: int, target: Path) -> Manifest:
        """Fetch a step into the empty directory ``target`` and compare its digests.

        Raises:
            StoreError: the store does not answer.
            DamagedError: the copy is incomplete or altered; the text names the file.
        """
        guarded(self.store, f"step {step}", lambda: self.store.download(step, target))
        return verify_step(target)

    def discard_after(self, step: int) -> None:
        """Remove newer steps; if the store does not answer now, then before the next copy."""
        with self._changed:
            if self._waiting is not None and self._waiting.step > step:
                self._waiting.held.close()
                self._waiting = None
        self.wait()
        self._discard_after = step
        try:
            guarded(self.store, "removal of newer steps", self._discard)
        except StoreError as error:
            self._fail(error)

    def _work(self) -> None:
        """Copy what waits until nothing does."""
        while True:
            with self._changed:
                self._current = copy = self._waiting
                self._waiting = None
                if copy is None:
                    self._running = False
                    self._changed.notify_all()
                    return
            try:
                if copy.ready():
                    with self._changed:
                        copy.hold()
                    self._copy_and_retry(copy)
            except Exception as error:
                self._fail(StoreError(f"copy of step {copy.step}", found=repr(error)))
            finally:
                with self._changed:
                    self._current = None
                    copy.held.close()

    def _copy_and_retry(self, copy: _Copy) -> None:
        for attempt in range(self._retries + 1):
            try:
                guarded(self.store, f"step {copy.step}", lambda: self._copy(copy.step, copy.path))
            except DamagedError as error:
                self._fail(error)
                return
            except StoreError as error:
                if attempt == self._retries or self._ending.wait(self._retry_wait_s * 2**attempt):
                    self._fail(error)
                    return
            else:
                if self.error is not None:
                    _log.info("checkpoints are copied to %s again", self.store.place)
                self.error = None
                self.copied.append(copy.step)
                _log.info("copied step %d to %s", copy.step, self.store.place)
                return

    def _copy(self, step: int, path: Path) -> None:
        self._discard()
        verify_step(path)
        self.store.upload(step, path)
        self._apply_retention(step)

    def _apply_retention(self, newest: int) -> None:
        """Remove what is not kept, and what earlier copies that were cut off have left."""
        found = self.store.steps()
        whole = [step for step, intact in found.items() if intact]
        keep = steps_to_keep(whole, self.config.keep_last, self.config.keep_every) | {newest}
        for step in found:
            if step < newest and step not in keep:
                self.store.remove(step)

    def _discard(self) -> None:
        if self._discard_after is not None:
            for step in self.store.steps():
                if step > self._discard_after:
                    self.store.remove(step)
            self._discard_after = None

    def _fail(self, error: CheckpointError) -> None:
        """Say it once, not with every copy."""
        if self.error is None:
            _log.error("%s; training continues, and the next step that is due is tried", error)
        self.error = error
