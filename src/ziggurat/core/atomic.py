"""Files and directories that exist wholly or not at all.

Content is written under a temporary name in the same directory, synced, renamed, and the parent is
synced. A kill at any moment leaves the old state or the new one, plus at most a temporary name that
:func:`sweep` removes.
"""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ziggurat.core.storage import naming

TEMPORARY = ".tmp-"
_ANY_TEMPORARY = re.compile(rf".*{re.escape(TEMPORARY)}.*", re.DOTALL)


def sync_path(path: Path) -> None:
    """Flush one file or directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A fresh temporary name in the same directory, so that a rename is atomic."""
    return path.with_name(f"{path.name}{TEMPORARY}{uuid.uuid4().hex[:8]}")


def write_file(path: Path, content: bytes | str) -> None:
    """Write or replace a file atomically (temporary name, fsync, rename, fsync of the parent)."""
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary_beside(path)
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def commit_directory(temporary: Path, final: Path) -> None:
    """Sync every file below ``temporary`` and rename it to ``final``, which must not exist."""
    for root, _, names in os.walk(temporary):
        for name in names:
            sync_path(Path(root, name))
        sync_path(Path(root))
    os.rename(temporary, final)
    sync_path(final.parent)


@contextlib.contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Fill a directory that appears under its name only if the block ends without an error.

    Raises:
        FileExistsError: ``final`` is there already.
    """
    if final.exists():
        raise FileExistsError(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(final)
    temporary.mkdir()
    try:
        with naming(final):
            yield temporary
            commit_directory(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_directory(path: Path) -> None:
    """Remove a directory such that a kill midway leaves no half directory under its name."""
    temporary = temporary_beside(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def sweep(directory: Path, names: re.Pattern[str] = _ANY_TEMPORARY) -> list[Path]:
    """Remove files and directories that killed processes left under temporary names; returns their
    paths.

    Args:
        directory: where the caller alone writes.
        names: which names; default every temporary one. A directory that may hold other people's
            files needs a narrower pattern.
    """
    left = [entry for entry in directory.iterdir() if names.fullmatch(entry.name)]
    for entry in left:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return left
