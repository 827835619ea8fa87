"""XXH3-128 digests of files: in threads, and while other files are still being written.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = (Path(folder) / "a").write_bytes(b"weights")
...     digest_files([Path(folder) / "a"])
['bdbda1eb6e05adc4800d98e5524fefbc']
"""

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
_UNFINISHED = ".__lock"
"""End of the name under which TensorStore writes a file, before it syncs and renames it."""


class Known(NamedTuple):
    """A digest with what tells whether the file has changed since."""

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


def digest_files(paths: Iterable[Path]) -> list[str]:
    """XXH3-128 of each file, several at a time.

    Raises:
        OSError: one cannot be read.
    """
    with ThreadPoolExecutor(THREADS, "digest") as pool:
        return list(pool.map(digest_file, paths))


def known(path: Path) -> Known:
    """Digest a file and note what it was like before."""
    before = path.stat()
    return Known(before.st_size, digest_file(path), before.st_ino, before.st_mtime_ns)


class WhileWriting:
    """Digests the finished data files below a directory while others are still being written.

    TensorStore writes a data file under another name, syncs and renames it; from then on it never
    changes. A thread looks for such files and hands them to a small pool, so that after the last
    write only the last file is left to read, from the page cache.

    Args:
        directory: where array items are written.
        process: whose files, by the number in ``ocdbt.process_<number>``.
    """

    def __init__(self, directory: Path, process: int):
        self._directory = directory
        self._pattern = f"*/ocdbt.process_{process}/d/*"
        self._done = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, "digest")
        self._found: dict[str, Future[Known]] = {}
        self._watcher = threading.Thread(target=self._watch, name="digest-watch", daemon=True)

    def __enter__(self) -> "WhileWriting":
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
        self._pool.shutdown(cancel_futures=True)

    def result(self) -> dict[str, Known]:
        """Digests of all finished files by path below the directory; call it after the last write.

        Raises:
            OSError: a file cannot be read.
        """
        self._done.set()
        self._watcher.join()
        self._look()
        return {name: future.result() for name, future in self._found.items()}

    def _watch(self) -> None:
        while not self._done.wait(_POLL_S):
            self._look()

    def _look(self) -> None:
        for path in self._directory.glob(self._pattern):
            name = path.relative_to(self._directory).as_posix()
            if name not in self._found and not name.endswith(_UNFINISHED):
                self._found[name] = self._pool.submit(known, path)
