"""One writer per checkpoint directory: a lock that ends with the process that holds it."""

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError

_log = logging.getLogger(__name__)
_LEFT = re.compile(r"(step_\d{8,}|\.identity).*\.tmp-(writing|[0-9a-f]{8})")
"""Temporary names that a killed writer leaves here. Nothing else is removed: the directory may hold
files of its owner."""
PATIENCE_S = 10.0
"""How long a writer waits for another process to let go of the directory."""


class WriterLock:
    """Lock of the only process that may save into a directory and sweep the remains of killed
    writers.

    The lock is ``flock`` on the file ``.lock``: the kernel drops it when its holder dies. On a file
    system without locks every process that asks becomes a writer.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._descriptor: int | None = None
        self._held = False

    def acquire(self) -> None:
        """Take the lock until :meth:`release`; creates the directory.

        Raises:
            CheckpointError: another process is the writer.
            OSError: the directory cannot be made or written to.
        """
        if self._held and self._is_current():
            return
        self.release()
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._take(PATIENCE_S):
            raise CheckpointError(
                f"checkpoint directory {self._directory}",
                found="another process that saves here",
                expected="one writer",
                fix="end that process or choose another directory",
            )
        self._sweep()

    @contextlib.contextmanager
    def if_free(self) -> Iterator[bool]:
        """Hold the lock during the block if it is ours or free; yields whether it is."""
        if self._held and self._is_current():
            yield True
            return
        held = self._directory.is_dir() and self._take(0.0)
        try:
            yield held
        finally:
            if held:
                self.release()

    def release(self) -> None:
        descriptor, self._descriptor, self._held = self._descriptor, None, False
        if descriptor is not None:
            os.close(descriptor)

    def _is_current(self) -> bool:
        """Whether the locked file is still the directory's: somebody may have removed it."""
        if self._descriptor is None:
            return True  # a file system without locks
        try:
            ours, now = os.fstat(self._descriptor), os.stat(self._directory / ".lock")
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (now.st_dev, now.st_ino)

    def _sweep(self) -> None:
        for path in atomic.sweep(self._directory, _LEFT):
            _log.info("removed %s, left by a process that was killed", path.name)

    def _take(self, patience_s: float) -> bool:
        """Lock the directory; without patience only where that works at once."""
        try:
            descriptor = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            if patience_s > 0:
                raise
            return False  # a directory we may only read
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._descriptor, self._held = descriptor, True
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                os.close(descriptor)
            except OSError as error:
                _log.debug("%s is on a file system without locks: %s", self._directory, error)
                os.close(descriptor)
                self._held = patience_s > 0
            return self._held
