"""Where a trainer finds its keeper: a socket in a directory that only this user can open.

A keeper holds the lock of its name as long as it lives, and the kernel lets go of it when it is
killed: a name whose lock nobody holds is left over, and swept.
"""

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import xxhash


def private_directory() -> Path:
    """Directory of the sockets of this user's keepers, closed to others.

    Raises:
        PermissionError: somebody else owns the directory.
    """
    path = Path(tempfile.gettempdir()) / f"ziggurat-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if found.st_uid != os.getuid() or not private:
        raise PermissionError(f"{path} is not a directory that only this user can open")
    return path


def keeper_name(directory: Path, process: int) -> str:
    """Name of the keeper for a process of the run whose checkpoints are in ``directory``."""
    return xxhash.xxh3_64_hexdigest(f"{directory.resolve()}\0{process}\0{os.getuid()}".encode())


@contextlib.contextmanager
def short_address(directory: Path, name: str) -> Iterator[str]:
    """Address of a socket in ``directory`` that fits a socket's 107 bytes however long the path
    is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}.sock"
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> int | None:
    """Lock a file that may be removed by its holder meanwhile; None when it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def remove(directory: Path, name: str) -> None:
    """Remove the files of one keeper; the caller holds its lock."""
    for ending in ("sock", "log", "lock"):
        (directory / f"{name}.{ending}").unlink(missing_ok=True)


def sweep(directory: Path) -> list[str]:
    """Remove the files of killed keepers: those whose lock nobody holds."""
    swept = []
    for path in directory.glob("*.lock"):
        descriptor = take_lock(path)
        if descriptor is not None:
            remove(directory, path.stem)
            os.close(descriptor)
            swept.append(path.stem)
    return swept
