"""Damaged checkpoints are set aside under another name: never restored, never deleted by us.

``step_00000050`` becomes ``step_00000050.damaged-digest-20261122T221500``. The command
``ziggurat checkpoints repair`` puts it back when an intact copy of its damaged files is found.
"""

import dataclasses
import itertools
import logging
import os
import re
import time
from pathlib import Path

from ziggurat.checkpoint.manifest import MANIFEST, DamagedError, damage, damaged_files
from ziggurat.checkpoint.retention import unread
from ziggurat.checkpoint.steps import manifest_of
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError

_log = logging.getLogger(__name__)
_NAME = re.compile(
    r"(?P<step>step_(?P<number>\d{8,}))\.damaged-(?P<reason>[a-z]+)-(?P<time>[\w-]+)"
)


@dataclasses.dataclass(frozen=True)
class Quarantined:
    """A checkpoint that was set aside as damaged."""

    step: int
    path: Path
    reason: str
    """``digest``, ``size``, ``missing``, ``extra``, ``manifest``, or ``data`` (undecodable)."""

    @property
    def home(self) -> Path:
        """Path of the step before it was set aside."""
        return self.path.with_name(self.path.name.partition(".damaged-")[0])


def quarantined(directory: Path) -> list[Quarantined]:
    """All checkpoints set aside in a directory, oldest step first.

    >>> quarantined(Path("no/such/directory"))
    []
    """
    if not directory.is_dir():
        return []
    named = ((_NAME.fullmatch(entry.name), entry) for entry in directory.iterdir())
    found = [Quarantined(int(m["number"]), path, m["reason"]) for m, path in named if m]
    return sorted(found, key=lambda entry: (entry.step, entry.path.name))


def inspect(step: int, path: Path) -> DamagedError | None:
    """Find damage in a step directory's bytes, or ``None``; files that cannot be read do not
    count."""
    try:
        manifest = manifest_of(step, path)
        found = damage(path, manifest, manifest.files)
    except DamagedError as error:
        found = error.files
    except CheckpointError:
        return None
    found = {name: what for name, what in found.items() if "Permission denied" not in what}
    return damaged_files(path, found) if found else None


def set_aside(step_directory: Path, error: DamagedError) -> Path | None:
    """Rename a damaged step directory; only the writer of its directory may.

    Returns the new path, or None where it stays: somebody else is reading it, it has gone, or it
    may not be renamed.
    """
    reason, now = _reason(error), time.strftime("%Y%m%dT%H%M%S")
    with unread(step_directory) as free:
        if not free:
            return None
        for number in itertools.count():
            suffix = f"-{number}" if number else ""
            target = step_directory.with_name(
                f"{step_directory.name}.damaged-{reason}-{now}{suffix}"
            )
            if not target.exists():
                break
        try:
            os.rename(step_directory, target)
            atomic.sync_path(target.parent)
        except OSError as refused:
            _log.warning("%s stays where it is: %s", step_directory, refused)
            return None
    _log.warning("set aside as %s: %s", target.name, error)
    return target


def _reason(error: DamagedError) -> str:
    if MANIFEST in error.files:
        return "manifest"
    text = next(iter(error.files.values()), "")
    kinds = {
        "not part": "extra",
        "no such file": "missing",
        " bytes instead of ": "size",
        "digest ": "digest",
    }
    return next((reason for part, reason in kinds.items() if part in text), "data")
