"""How much memory a process and its children take, looked at again and again."""

import collections
import contextlib
import os
import threading
from pathlib import Path

import psutil

_FILE = "/memfd:ziggurat"


class Memory:
    """The most that a process and its descendants took, looked at every 50 ms (bytes).

    Counted are resident pages, shared ones once for each process, and files in memory once,
    whether mapped or not. Not counted is a child that has not yet become the program it is to run:
    until then (vfork) the server's memory is all that it has.
    """

    def __init__(self, pid: int):
        self._process = psutil.Process(pid)
        self.most = 0
        """Of all together, at one moment."""
        self.alone = 0
        """Of the process without its descendants and without files."""
        self.parts: collections.Counter[str] = collections.Counter()
        """Of each kind of process, and of the files; not at the same moment."""
        self._looks, self._children = 0, list[int]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def look(self) -> None:
        """Look once."""
        found: collections.Counter[str] = collections.Counter()
        files: dict[int, int] = {}
        command = self._process.cmdline()
        for pid in [self._process.pid, *self._descendants()]:
            with contextlib.suppress(psutil.Error, OSError):
                own, said = pid == self._process.pid, psutil.Process(pid).cmdline()
                if not own and said == command:
                    continue
                found["server" if own else _kind(said)] += _resident(pid)
                files |= _files(pid)
        found["files"] = sum(files.values())
        self.alone = max(self.alone, found["server"])
        self.most = max(self.most, found.total())
        self.parts |= found

    def _descendants(self) -> list[int]:
        """Processes below this one, looked for at every fifth look: the walk over all that there
        are takes the server's core and the interpreter's lock of the probes."""
        if self._looks % 5 == 0:
            self._children = [child.pid for child in self._process.children(recursive=True)]
        self._looks += 1
        return self._children

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            with contextlib.suppress(psutil.Error):
                self.look()

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


def _kind(command: list[str]) -> str:
    return command[2].rpartition(".")[2] if command[1:2] == ["-m"] else "other"


def _resident(pid: int) -> int:
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    kib = [int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssFile")]
    return sum(kib) << 10


def _files(pid: int) -> dict[int, int]:
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith(_FILE):
                status = entry.stat()
                found[status.st_ino] = status.st_blocks * 512
    return found
