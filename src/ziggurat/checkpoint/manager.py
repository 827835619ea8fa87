"""The checkpoints of one run on disk: background saves, retention, and restore despite damage.

>>> import tempfile
>>> import numpy as np
>>> with tempfile.TemporaryDirectory() as folder:
...     with Checkpoints(Path(folder), CheckpointConfig(keep_last=1)) as checkpoints:
...         for step in (10, 20):
...             report = checkpoints.save(step, {"params": {"w": np.ones(3) * step}}, {"seed": 1})
...         checkpoints.wait()
...         restored = checkpoints.restore(None, {"params": {"w": np.zeros(3)}})
...         [info.step for info in checkpoints.steps()], restored.arrays["params"]["w"]
([20], array([20., 20., 20.]))
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxtyping import PyTree

from ziggurat.checkpoint import quarantine, retention
from ziggurat.checkpoint import steps as step_directory
from ziggurat.checkpoint.agreement import together
from ziggurat.checkpoint.config import CheckpointConfig
from ziggurat.checkpoint.content import StepContent
from ziggurat.checkpoint.manifest import DamagedError, Manifest
from ziggurat.checkpoint.saving import Save
from ziggurat.checkpoint.step_reader import StepReader
from ziggurat.checkpoint.writer_lock import WriterLock
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.mesh import Processes

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class SaveReport:
    """Timing and outcome of one save; the last fields are filled in when it ends in the
    background."""

    step: int
    blocking_s: float
    """Seconds the caller was held: waiting for an earlier save, and copying to the host."""
    waited_s: float = 0.0
    """Seconds of these that went into waiting for the earlier save."""
    total_s: float | None = None
    """Seconds until the checkpoint was on disk under its name; None until then."""
    bytes: int | None = None
    """Size on disk; None until it is there, and on all processes but the first."""
    attempts: int = 0
    """How often it was written; more than 1 if something failed and was retried."""
    error: str | None = None
    """Reason that the save was given up, in one line; None while it is being written, and on
    success."""


class Restored(NamedTuple):
    """Result of :meth:`Checkpoints.restore`."""

    step: int
    arrays: dict[str, PyTree]
    records: JsonObject


class Checkpoints(StepReader):
    """The step directories of one run.

    A save copies array data to the host, returns, and finishes in a background thread: arrays
    through Orbax while finished files are digested, then a manifest of all digests, then one
    rename. Another save waits for the one before, so that the host holds one copy at most.

    A save that fails (disk full, permission lost, directory gone) is retried ``config.retries``
    times in the background and then given up: one line in the log, :attr:`failures` and
    :attr:`last_error`, ``SaveReport.error``. :meth:`save` does not raise for it, so that training
    continues; :meth:`wait` and :meth:`close` do, so that the end of a run learns that its last save
    failed. The checkpoints before stay.

    Only one process may save into a directory; any number may read it. Who only looks at steps uses
    :class:`~ziggurat.checkpoint.StepReader`, which writes nothing. Making an object of this class
    writes nothing either: the first save, or :meth:`claim`, takes the lock and removes what killed
    writers left; :meth:`restore` sets a damaged step aside. With several JAX processes
    all of them call :meth:`save` and :meth:`restore` alike, over a shared file system; they
    succeed, fail and choose the same step together.

    Args:
        directory: where the ``step_*`` directories live; made by the first save.
        config: interval, retention and safety.
        processes: who saves and restores together; default all of ``jax.distributed``.
    """

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig | None = None,
        processes: Processes | None = None,
    ):
        super().__init__(directory)
        self.config = config or CheckpointConfig()
        self.failures = 0
        """Saves that were given up."""
        self.last_error: CheckpointError | None = None
        """Error of the last of them."""
        self.last_save: SaveReport | None = None
        self.newest_saved: int | None = None
        """Step of the newest save of this process that is on disk."""
        self._processes = processes or Processes()
        self._pending_error: CheckpointError | None = None
        self._thread: threading.Thread | None = None
        self._lock = WriterLock(self.directory)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(strict=kind is None)

    def due(self, step: int) -> bool:
        """Whether the configured interval asks for a checkpoint after ``step`` steps."""
        return step > 0 and step % self.config.every == 0

    def claim(self) -> None:
        """Take the lock of the only writer, as the first :meth:`save` does, until :meth:`close`.

        Raises:
            CheckpointError: another process is.
            OSError: the directory cannot be made or written to.
        """
        self._lock.acquire()

    def save(
        self,
        step: int,
        arrays: Mapping[str, PyTree],
        records: JsonMapping | None = None,
        files: Mapping[str, bytes | Path] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> SaveReport:
        """Write ``step_<step>/``; on return the arrays may be donated or changed.

        Args:
            step: number of finished training steps.
            arrays: trees of ``jax.Array`` (any sharding) or numpy leaves by item name, such as
                ``{"params": ..., "optimizer": ...}``. Each item can be restored alone.
            records: JSON values, such as the data state.
            files: content, or the path of a file to copy, by relative name (``run.toml``).
            metrics: what ``config.keep_best`` compares; values that are not finite are left out.

        Raises:
            CheckpointError: this step exists and is intact, something cannot be stored, or another
                process is saving here. Not for what the file system refuses, see the class.
        """
        start = time.perf_counter()
        self.wait(strict=False)
        waited = time.perf_counter() - start
        save = Save(self.directory, step, self.config, self._lock, self._processes)
        content = save.admit(lambda: StepContent(step, arrays, records, files, metrics))
        report = SaveReport(step, time.perf_counter() - start, waited)
        self.last_save = report
        self._thread = threading.Thread(
            target=self._finish, args=(save, content, report, start), name=f"checkpoint-{step}"
        )
        del content  # the thread drops it when it ends
        self._thread.start()
        if not self.config.asynchronous:
            self.wait(strict=False)
            report.blocking_s = time.perf_counter() - start
        return report

    def wait(self, *, strict: bool = True) -> None:
        """Wait for the save under way.

        Args:
            strict: raise if the newest save failed.

        Raises:
            CheckpointError: the newest save was given up; raised once, and kept in
                :attr:`last_error`.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        if strict:
            error, self._pending_error = self._pending_error, None
            if error is not None:
                raise error

    def close(self, *, strict: bool = True) -> None:
        """Finish the save under way and release the writer's lock.

        Raises:
            CheckpointError: the newest save was given up, and nobody has been told.
        """
        try:
            self.wait(strict=strict)
        finally:
            self._lock.release()

    def restore(
        self,
        step: int | None,
        like: Mapping[str, PyTree],
        *,
        verify: bool | None = None,
        cast: bool = False,
        partial: bool = False,
    ) -> Restored:
        """Arrays in the structure and shardings of ``like``, and the records.

        A step found damaged is set aside (see :mod:`ziggurat.checkpoint.quarantine`) unless another
        process is saving here.

        Args:
            step: which step, or None for the newest intact one: damaged steps are then passed over
                with a warning.
            like: trees of ``jax.ShapeDtypeStruct`` (or arrays) for the items wanted. Leaves with a
                sharding come back as ``jax.Array`` with it, on any mesh; others as numpy arrays.
            verify: compare digests while reading; default is the configuration's. Each of several
                processes reads its share of the files.
            cast: convert between float types, or integer types, where ``like`` differs.
            partial: the checkpoint may have leaves that ``like`` does not ask for, so that some
                modules can be restored; what is asked for must still be there.

        Raises:
            CheckpointError: no such checkpoint; a leaf is missing, unexpected or of another shape
                or type; or files are damaged. The text names the leaf or file.
        """
        check = self.config.verify if verify is None else verify
        damage_found: DamagedError | None = None
        for candidate in self._candidates(step):
            path = self.directory / step_directory.step_name(candidate)
            try:
                return self._restore(candidate, path, like, check, cast, partial)
            except CheckpointError as error:
                if step is None and self._agree("gone", not path.exists()):  # retention took it
                    return self.restore(None, like, verify=verify, cast=cast, partial=partial)
                if not isinstance(error, DamagedError):
                    raise
                self._damaged.add(candidate)
                self._set_aside(candidate, path)
                if step is not None:
                    raise
                damage_found = damage_found or error
                _log.warning("step %d is damaged, trying an older one: %s", candidate, error)
        if damage_found is not None:
            raise CheckpointError(
                f"no intact checkpoint in {self.directory}", found=str(damage_found)
            ) from damage_found
        raise CheckpointError(
            f"no checkpoint in {self.directory}",
            found="no step directory" if self.directory.is_dir() else "no such directory",
            expected=f"{step_directory.step_name(0)} or the like",
            fix="check the path, or train first",
        )

    def discard_after(self, step: int) -> list[int]:
        """Remove all newer steps, to continue from an older one; returns what was removed."""
        self.wait(strict=False)

        def discard() -> list[int]:
            if not self._processes.first:
                return []
            self.claim()
            newer = [info for info in self.steps() if info.step > step]
            return [info.step for info in newer if retention.remove_unread(info.path)]

        return together(self._processes, f"checkpoint/{self.directory}/discard", discard)[0]

    def adopt(self, made: Path, step: int) -> None:
        """Give a whole step directory that was made below :attr:`directory` its name, in place of
        one that is damaged; for the first process, after :meth:`claim`."""
        final = self.directory / step_directory.step_name(step)
        if final.exists():
            atomic.remove_directory(final)
        atomic.commit_directory(made, final)
        self._damaged.discard(step)

    def _candidates(self, step: int | None) -> list[int]:
        """Steps to try, newest first; the same on all processes."""
        found = self._agree("steps", [info.step for info in self.steps()])
        if step is None:
            return found[::-1]
        if step not in found:
            raise CheckpointError(
                f"checkpoint step {step} in {self.directory}",
                found="no such step",
                expected="one of " + ", ".join(map(str, found)) if found else "a checkpoint",
            )
        return [step]

    def _restore(
        self,
        step: int,
        path: Path,
        like: Mapping[str, PyTree],
        verify: bool,
        cast: bool,
        partial: bool,
    ) -> Restored:
        restored: list[Restored] = []

        def read() -> None:
            with retention.reading(path):
                manifest = step_directory.manifest_of(step, path)
                names = self._share(manifest, manifest.files_of(like)) if verify else []
                arrays = step_directory.restore_items(
                    path, manifest, like, cast=cast, partial=partial, verify=names
                )
                records = step_directory.read_records(path, verify=verify)
                restored.append(Restored(manifest.step, arrays, records))

        together(self._processes, f"checkpoint/{self.directory}/restore/{step}", read)
        return restored[0]

    def _share(self, manifest: Manifest, names: list[str]) -> list[str]:
        """The files that this process verifies: about the same number of bytes on each."""
        by_size = sorted(names, key=lambda name: (-manifest.files[name].bytes, name))
        return by_size[self._processes.index :: self._processes.count]

    def _set_aside(self, step: int, path: Path) -> None:
        """Move a damaged step out of the way, if we are the writer or nobody is."""
        if not self._processes.first:
            return
        with self._lock.if_free() as writer:
            found = quarantine.inspect(step, path) if writer else None
            if found is not None and quarantine.set_aside(path, found):
                self._damaged.discard(step)

    def _finish(self, save: Save, content: StepContent, report: SaveReport, start: float) -> None:
        """The background half of a save."""
        try:
            manifest, report.attempts = save.run(content)
        except CheckpointError as error:
            self.failures += 1
            self.last_error = self._pending_error = error
            report.error = str(error)
            report.attempts = 1 + self.config.retries
            _log.error("%s", error)
            return
        self._pending_error = None
        self.newest_saved = report.step
        self._damaged.discard(report.step)
        report.total_s = time.perf_counter() - start
        _log.info("saved step %d in %.2f s", report.step, report.total_s)
        report.bytes = manifest.total_bytes if manifest is not None else None
        try:  # all processes see what is kept
            name = f"checkpoint/{self.directory}/{report.step}/retention"
            together(self._processes, name, self._apply_retention)
        except Exception as error:  # the checkpoint itself is safe
            _log.warning("old checkpoints in %s could not be removed: %s", self.directory, error)

    def _apply_retention(self) -> None:
        if not self._processes.first:
            return
        infos = self.steps()
        intact = {info.step: info.metrics for info in infos if info.intact}
        keep = retention.kept_by(self.config, intact)
        for info in infos:
            if info.step in intact and info.step not in keep:
                retention.remove_unread(info.path)
            elif not info.intact:
                self._set_aside(info.step, info.path)

    def _agree(self, name: str, value: Json) -> Json:
        return self._processes.agree(f"checkpoint/{self.directory}/{name}", value)
