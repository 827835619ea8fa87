"""XXH3-128 digests of files: in threads, and while other files are still being written.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = (Path(folder) / "a").write_bytes(b"weights")
...     digest_files([Path(folder) / "a"])
['bdbda1eb6e05adc4800d98e5524fefbc']
"""

import mmap
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import xxhash

THREADS = min(8, os.cpu_count() or 1)
"""Threads that digest files; the hash runs outside the interpreter's lock."""
_BLOCK = 1 << 22
_POLL_S = 0.02


class _Stamp(NamedTuple):
    """File facts that change when its content does."""

    bytes: int
    inode: int
    modified_ns: int


class Known(NamedTuple):
    """A file's digest with its size and times, which tell whether it has changed since."""

    bytes: int
    xxh3_128: str
    inode: int
    modified_ns: int


def digest_file(path: Path) -> str:
    """XXH3-128 of a file's content, as 32 hex digits."""
    digest, buffer = xxhash.xxh3_128(), bytearray(_BLOCK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def digest_cached_file(path: Path) -> str:
    """XXH3-128 of a file that was written just now, in place in the page cache.

    Half the time of :func:`digest_file`, which copies. A disk that fails under a mapping ends the
    process, so this is not for files that have to come from the disk.
    """
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, _BLOCK):  # mapped pages count as the process's memory
            length = min(_BLOCK, size - start)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start) as content:
                digest.update(content)
    return digest.hexdigest()


def digest_files(paths: Iterable[Path]) -> list[str]:
    """XXH3-128 of each file, several at a time.

    Raises:
        OSError: one cannot be read.
    """
    with ThreadPoolExecutor(THREADS, "digest") as pool:
        return list(pool.map(digest_file, paths))


def known(path: Path) -> Known:
    """Digest a file that was written just now, and record its size and times."""
    before = _stamp(path)
    return Known(before.bytes, digest_cached_file(path), before.inode, before.modified_ns)


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return _Stamp(status.st_size, status.st_ino, status.st_mtime_ns)


class WhileWriting:
    """Digests the finished data files below a directory while others are still being written.

    A thread looks for files that have not changed since its last look and hands them to a small
    pool: most are read from the page cache while the store syncs them to the disk, which takes as
    long as the writing. A file that changes later is read again.

    Args:
        directory: where array items are written.
        process: whose files, by the number in ``ocdbt.process_<number>``.
    """

    def __init__(self, directory: Path, process: int):
        self._directory = directory
        self._pattern = f"*/ocdbt.process_{process}/d/*"
        self._done = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, "digest")
        self._seen: dict[str, _Stamp] = {}
        self._found: dict[str, tuple[_Stamp, Future[Known]]] = {}
        self._watcher = threading.Thread(target=self._watch, name="digest-watch", daemon=True)

    def __enter__(self) -> "WhileWriting":
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
        self._pool.shutdown(cancel_futures=True)

    def result(self) -> dict[str, Known]:
        """Digests of all files by path below the directory; call it after the last write.

        Raises:
            OSError: a file cannot be read.
        """
        self._done.set()
        self._watcher.join()
        self._look(finished=True)
        return {name: future.result() for name, (_, future) in self._found.items()}

    def _watch(self) -> None:
        while not self._done.wait(_POLL_S):
            self._look(finished=False)

    def _look(self, finished: bool) -> None:
        for path in self._directory.glob(self._pattern):
            name = path.relative_to(self._directory).as_posix()
            try:
                stamp = _stamp(path)
            except FileNotFoundError:  # renamed meanwhile
                continue
            still = finished or self._seen.get(name) == stamp
            self._seen[name] = stamp
            if still and (name not in self._found or self._found[name][0] != stamp):
                self._found[name] = (stamp, self._pool.submit(known, path))
