"""The checkpoints of one run: background saves, retention, and restore that survives damage.

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

import contextlib
import dataclasses
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from ziggurat.checkpoint import steps as step_directory
from ziggurat.checkpoint.config import CheckpointConfig
from ziggurat.checkpoint.manifest import (
    RECORDS,
    DamagedError,
    Manifest,
    check_digests,
    check_sizes,
    describe,
    read_manifest,
    write_manifest,
)
from ziggurat.checkpoint.writer_lock import WriterLock
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError

_log = logging.getLogger(__name__)
_STEP = re.compile(r"step_(\d{8,})")
_BARRIER_MS = 1_800_000


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """One checkpoint on disk."""

    step: int
    path: Path
    bytes: int
    created: float
    """Seconds since 1970 (UTC)."""
    intact: bool
    """Whether the manifest reads and every file has its recorded size. Digests are compared on
    restore; a step found damaged then is reported as not intact from then on."""


@dataclasses.dataclass
class SaveReport:
    """How one save went."""

    step: int
    blocking_s: float
    """Seconds the caller was held: waiting for an earlier save, and copying to the host."""
    total_s: float | None = None
    """Seconds until the checkpoint was on disk under its name; None while it is being written."""
    bytes: int | None = None
    """Size on disk; None while it is being written."""


class Restored(NamedTuple):
    """What :meth:`Checkpoints.restore` returns."""

    step: int
    arrays: dict[str, PyTree]
    records: dict[str, Any]


def steps_to_keep(
    intact: Collection[int], keep_last: int, keep_every: int | None = None
) -> set[int]:
    """Which of the intact steps retention keeps; the newest is always among them.

    >>> sorted(steps_to_keep({10, 20, 30, 40, 50}, keep_last=2, keep_every=20))
    [20, 40, 50]
    """
    newest = set(sorted(intact)[-keep_last:])
    return newest | {step for step in intact if keep_every and step % keep_every == 0}


class Checkpoints:
    """The step directories of one run.

    A save copies array data to the host, returns, and finishes in a background thread: arrays
    through Orbax, then records and files, then a manifest of digests, then one rename. Another save
    waits for the one before. An error in the background is raised by the next :meth:`save`,
    :meth:`wait` or :meth:`close`, and stays in :attr:`last_error`.

    Only one process may save into a directory; any number may read it. With several JAX processes
    all of them call :meth:`save` and :meth:`restore` alike, over a shared file system.

    Args:
        directory: where the ``step_*`` directories live; made by the first save.
        config: interval, retention and safety.
    """

    def __init__(self, directory: Path, config: CheckpointConfig | None = None):
        self.directory = Path(directory).absolute()
        self.config = config or CheckpointConfig()
        self.last_error: CheckpointError | None = None
        self.last_save: SaveReport | None = None
        self._pending_error: CheckpointError | None = None
        self._thread: threading.Thread | None = None
        self._lock = WriterLock(self.directory)
        self._guard = threading.Lock()
        self._reading: dict[int, int] = {}
        self._damaged: set[int] = set()
        self._lock.sweep_if_free()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def due(self, step: int) -> bool:
        """Whether the configured interval asks for a checkpoint after ``step`` steps."""
        return step > 0 and step % self.config.every == 0

    def save(
        self,
        step: int,
        arrays: Mapping[str, PyTree],
        records: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes | Path] | None = None,
    ) -> SaveReport:
        """Write ``step_<step>/``; on return the arrays may be donated or changed.

        Args:
            step: number of finished training steps.
            arrays: trees of ``jax.Array`` (any sharding) or numpy leaves by item name, such as
                ``{"params": ..., "optimizer": ...}``. Each item can be restored alone.
            records: JSON values, such as the data state.
            files: content, or the path of a file to copy, by relative name (``run.toml``).

        Raises:
            CheckpointError: this step exists and is intact, something cannot be stored, another
                process is saving here, or an earlier save failed in the background.
        """
        start = time.perf_counter()
        self.wait()
        final = self.directory / step_directory.step_name(step)
        writing = final.with_name(f"{final.name}{atomic.TEMPORARY}writing")
        try:
            if jax.process_index() == 0:
                self._prepare(step, final, writing)
            finish = self._start(writing, arrays, records or {}, files or {})
        except OSError as error:
            raise _save_error(step, error) from error
        report = SaveReport(step, blocking_s=time.perf_counter() - start)
        self.last_save = report

        def complete() -> None:
            try:
                self._commit(step, writing, final, finish, report)
                report.total_s = time.perf_counter() - start
                _log.info("saved step %d in %.2f s", step, report.total_s)
            except Exception as error:
                _drop(writing)
                self.last_error = self._pending_error = _save_error(step, error)
                _log.error("%s", self.last_error)

        self._thread = threading.Thread(target=complete, name=f"checkpoint-{step}")
        self._thread.start()
        if not self.config.asynchronous:
            self.wait()
            report.blocking_s = time.perf_counter() - start
        return report

    def wait(self) -> None:
        """Wait for the save under way.

        Raises:
            CheckpointError: it failed; raised once, and kept in :attr:`last_error`.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._pending_error = self._pending_error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Finish the save under way and let other processes save here."""
        try:
            self.wait()
        finally:
            self._lock.release()

    def steps(self) -> list[StepInfo]:
        """All step directories, oldest first, damaged ones included."""
        if not self.directory.is_dir():
            return []
        numbered = [(_STEP.fullmatch(entry.name), entry) for entry in self.directory.iterdir()]
        found = sorted((int(match[1]), entry) for match, entry in numbered if match)
        return [self._info(step, path) for step, path in found]

    def latest(self) -> StepInfo | None:
        """The newest intact step, if any."""
        return next((info for info in reversed(self.steps()) if info.intact), None)

    def restore(
        self,
        step: int | None,
        like: Mapping[str, PyTree],
        *,
        verify: bool | None = None,
        cast: bool = False,
    ) -> Restored:
        """Arrays in the structure and shardings of ``like``, and the records.

        Args:
            step: which step, or None for the newest intact one: damaged steps are then passed over
                with a warning.
            like: trees of ``jax.ShapeDtypeStruct`` (or arrays) for the items wanted. Leaves with a
                sharding come back as ``jax.Array`` with it, on any mesh; others as numpy arrays.
            verify: compare digests before reading; default is the configuration's.
            cast: convert between float types, or integer types, where ``like`` differs.

        Raises:
            CheckpointError: no such checkpoint; a leaf is missing, unexpected or of another shape
                or type; or files are damaged. The text names the leaf or file.
        """
        check = self.config.verify if verify is None else verify
        infos = {info.step: info for info in self.steps()}
        if step is not None and step not in infos:
            raise CheckpointError(
                f"checkpoint step {step} in {self.directory}",
                found="no such step",
                expected="one of " + ", ".join(map(str, infos)) if infos else "a checkpoint",
            )
        damage: DamagedError | None = None
        for candidate in [step] if step is not None else sorted(infos, reverse=True):
            try:
                return self._restore(infos[candidate], like, check, cast)
            except CheckpointError as error:
                if step is None and not infos[candidate].path.exists():  # retention took it
                    return self.restore(None, like, verify=verify, cast=cast)
                if not isinstance(error, DamagedError):
                    raise
                self._damaged.add(candidate)
                if step is not None:
                    raise
                damage = damage or error
                _log.warning("step %d is damaged, trying an older one: %s", candidate, error)
        if damage is not None:
            raise CheckpointError(
                f"no intact checkpoint in {self.directory}", found=str(damage)
            ) from damage
        raise CheckpointError(
            f"no checkpoint in {self.directory}",
            found="no step directory" if self.directory.is_dir() else "no such directory",
            expected=f"{step_directory.step_name(0)} or the like",
            fix="check the path, or train first",
        )

    def discard_after(self, step: int) -> list[int]:
        """Remove all newer steps, to continue from an older one; returns what was removed."""
        self.wait()
        newer = [info for info in self.steps() if info.step > step]
        if jax.process_index() == 0:
            self._lock.acquire()
            for info in newer:
                self._remove(info)
        return [info.step for info in newer]

    def _restore(
        self, info: StepInfo, like: Mapping[str, PyTree], verify: bool, cast: bool
    ) -> Restored:
        with self._held(info.step):
            manifest = read_manifest(info.path)
            if verify:
                check_digests(info.path, manifest, manifest.files_of(like))
            arrays = {
                item: step_directory.restore_item(info.path, manifest, item, tree, cast=cast)
                for item, tree in like.items()
            }
            try:
                records = json.loads((info.path / RECORDS).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DamagedError(
                    f"damaged checkpoint file {info.path / RECORDS}", found=error
                ) from None
            return Restored(manifest.step, arrays, records)

    def _start(self, writing: Path, *content: Any) -> Callable[[], Any]:
        try:
            return step_directory.start_writing(writing, *content)
        except BaseException:
            _drop(writing)
            raise

    def _commit(
        self,
        step: int,
        writing: Path,
        final: Path,
        finish: Callable[[], Any],
        report: SaveReport,
    ) -> None:
        import orbax.checkpoint as ocp

        items = finish()
        if jax.process_index() == 0:
            manifest: Manifest = describe(writing, step, items)
            write_manifest(writing, manifest)
            atomic.commit_directory(writing, final)
            report.bytes = manifest.total_bytes
            self._damaged.discard(step)
            try:
                self._apply_retention()
            except OSError as error:
                _log.warning("old checkpoints in %s could not be removed: %s", final.parent, error)
        ocp.multihost.get_barrier_sync_fn()(key=f"ziggurat_step_{step}", timeout_ms=_BARRIER_MS)

    def _prepare(self, step: int, final: Path, writing: Path) -> None:
        """Own the directory and make the temporary one; a damaged step of that name goes."""
        if step < 0:
            raise CheckpointError("checkpoint step", found=step, expected="0 or more")
        self._lock.acquire()
        if final.exists():
            try:
                step_directory.verify_step(final)
            except DamagedError as error:
                _log.warning("replacing a damaged checkpoint: %s", error)
                atomic.remove_directory(final)
            else:
                raise CheckpointError(
                    f"checkpoint {final}",
                    found="an intact checkpoint of this step",
                    expected="none",
                    fix=f"call discard_after({step - 1}) to go on from an older step",
                )
        writing.mkdir()

    def _apply_retention(self) -> None:
        infos = self.steps()
        intact = [info.step for info in infos if info.intact]
        keep = steps_to_keep(intact, self.config.keep_last, self.config.keep_every)
        for info in infos:
            if info.step not in keep and info.step < max(intact):
                self._remove(info)

    def _remove(self, info: StepInfo) -> None:
        with self._guard:
            if not self._reading.get(info.step):
                atomic.remove_directory(info.path)
                self._damaged.discard(info.step)

    @contextlib.contextmanager
    def _held(self, step: int) -> Iterator[None]:
        """Keep retention away from a step while it is read."""
        with self._guard:
            self._reading[step] = self._reading.get(step, 0) + 1
        try:
            yield
        finally:
            with self._guard:
                self._reading[step] -= 1

    def _info(self, step: int, path: Path) -> StepInfo:
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            created = path.stat().st_mtime if path.exists() else 0.0
            return StepInfo(step, path, 0, created, intact=False)
        intact = step not in self._damaged and not check_sizes(path, manifest)
        return StepInfo(step, path, manifest.total_bytes, manifest.created, intact)


def _drop(writing: Path) -> None:
    """Remove what a failed save left, on the process that made it."""
    if jax.process_index() == 0:
        shutil.rmtree(writing, ignore_errors=True)


def _save_error(step: int, error: BaseException) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    line = str(error).strip().partition("\n")[0][:300]
    return CheckpointError(
        f"checkpoint step {step}",
        found=f"it could not be written ({type(error).__name__}: {line})",
        expected="a writable directory with room",
        fix="free space or choose another directory; older checkpoints are untouched",
    )
