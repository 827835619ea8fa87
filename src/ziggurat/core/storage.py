"""File errors of the operating system as one line: what was done, where, why, what helps.

Every command line passes what is left of ``OSError`` through :func:`storage_error`. Python names
the file when a file is opened and not when a write fails (a full disk), so code that writes large
files says where with :func:`naming`.

>>> print(storage_error("export", FileExistsError(17, "File exists", "out")))
export: found out: File exists; expected a name that is free; choose another name
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ziggurat.core.errors import EnvironmentError, StorageError

_ADVICE = {
    errno.ENOSPC: ("free disk space", "free some, or choose another directory"),
    errno.EDQUOT: ("disk space within the quota", "free some, or choose another directory"),
    errno.EACCES: ("permission", "check the owner and mode of the path"),
    errno.EPERM: ("permission", "check the owner and mode of the path"),
    errno.EROFS: ("a file system that can be written", "choose another directory"),
    errno.ENOENT: ("a path that exists or can be made", "check the path"),
    errno.ENOTDIR: ("a directory", "a part of the path is a file; check the path"),
    errno.EISDIR: ("a file", "the path is a directory; check the path"),
    errno.EEXIST: ("a name that is free", "choose another name"),
    errno.ENOTEMPTY: ("a name that is free", "choose another name"),
    errno.ENAMETOOLONG: ("a shorter name", "choose another name"),
    errno.EMFILE: ("fewer open files", "raise the limit: ulimit -n"),
    errno.EIO: ("a disk that works", "look at the system's log"),
}
"""errno -> what was expected, and what helps."""


def storage_error(what: str, error: OSError) -> StorageError:
    """The error line for an ``OSError``.

    Args:
        what: what was being done, such as a command.
        error: what the system said.
    """
    paths = [str(p) for p in (error.filename, error.filename2) if p not in (None, "")]
    said = error.strerror or " ".join(map(str, error.args))
    reason = " ".join(said.split()) or type(error).__name__
    expected, fix = _ADVICE.get(error.errno or 0, ("", "--debug shows where"))
    found = f"{' -> '.join(paths)}: {reason}" if paths else reason
    return StorageError(what, found=found, expected=expected, fix=fix)


CLIENTS = {
    "s3": ("s3fs", "pip install 'ziggurat[s3]'"),
    "s3a": ("s3fs", "pip install 'ziggurat[s3]'"),
    "gs": ("gcsfs", "pip install 'ziggurat[gcs]'"),
    "gcs": ("gcsfs", "pip install 'ziggurat[gcs]'"),
    "az": ("adlfs", "pip install adlfs"),
    "abfs": ("adlfs", "pip install adlfs"),
    "abfss": ("adlfs", "pip install adlfs"),
    "http": ("aiohttp", "pip install aiohttp"),
    "https": ("aiohttp", "pip install aiohttp"),
}
"""Protocol of a URL -> the package that reads it, and how it is installed."""


def missing_client(what: str, url: str, error: ImportError) -> EnvironmentError:
    """The error line for a store whose client is not installed."""
    protocol = url.partition("://")[0]
    package, fix = CLIENTS.get(protocol, (error.name or str(error), "install it"))
    return EnvironmentError(
        what, found=f"no package {package}", expected=f"it, to read {protocol}://", fix=fix
    )


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Name ``path`` in an ``OSError`` of this block that names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # else the name hides the text
            error.filename = os.fspath(path)
        raise
