"""A case, what it is run with, and what it is judged by."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

MOVED = {
    "from ziggurat.models import pretrained": "from ziggurat.models.loading import pretrained",
    "from ziggurat.models.peft import": "from ziggurat.models.loading.peft import",
    "from ziggurat.data.encode import Encoder": (
        "from ziggurat.data.encode import DocumentEncoder as Encoder"
    ),
    "/usr/lib/python3*/email/*.py": str(Path(os.__file__).parent / "email" / "*.py"),
}
"""Names that have moved since the cases' scripts were written, and where they are now."""
ZIGGURAT = str(Path(sys.executable).with_name("ziggurat"))
"""The command of this environment."""


class Differs(Exception):
    """What was seen, where it is not the expected value."""


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    """Exit code, 124 where the time ran out."""
    text: str
    """All that it printed."""

    @property
    def last(self) -> str:
        """Its last line."""
        return self.text.strip().splitlines()[-1] if self.text.strip() else ""

    def find(self, pattern: str) -> str:
        """The first line with a pattern in it; empty if there is none."""
        return next((line for line in self.text.splitlines() if re.search(pattern, line)), "")


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder of cases, and the function that runs it.

    Args:
        name: the folder's path.
        run: runs it and returns what was seen; raises :class:`Differs` where that is not the
            expected value.
        note: how the run departs from the folder's own script; empty where it does not.
        later: why the expected value is still to come; empty where it must be seen.
    """

    name: str
    run: Callable[["Scratch"], str]
    note: str = ""
    later: str = ""


CASES: dict[str, Case] = {}


def case(name: str, note: str = "", later: str = "") -> Callable[[Callable], Callable]:
    """Register the function that runs a case."""

    def add(run: Callable[["Scratch"], str]) -> Callable[["Scratch"], str]:
        CASES[name] = Case(name, run, note, later)
        return run

    return add


def expect(fits: object, seen: str) -> str:
    """What was seen, if it fits.

    Raises:
        Differs: it does not.
    """
    if not fits:
        raise Differs(seen)
    return seen


class Scratch:
    """An empty folder in which one case runs, with ``cases-work`` as the scripts expect it.

    Args:
        path: the folder.
        cases: the folder of all cases.
        patience: factor on every time limit.
    """

    def __init__(self, path: Path, cases: Path, patience: float):
        self.path, self.cases, self.patience = path, cases, patience
        for folder in ("w", "work"):
            (path / "cases-work" / folder).mkdir(parents=True)
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "400",
            "PYTHONWARNINGS": "ignore",
        }

    def copy(self, source: str, to: str = "", change: Mapping[str, str] | None = None) -> Path:
        """Copy a file of the cases, with names that have moved, or with further changes."""
        text = (self.cases / source).read_text()
        for old, new in {**MOVED, **(change or {})}.items():
            if change and old in change and old not in text:
                raise Differs(f"the case's script is another one: it has no {old!r}")
            text = text.replace(old, new)
        place = self.path / (to or Path(source).name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def python(self, *arguments: str, limit_s: float = 120, cwd: str = "") -> Done:
        """Run Python with this environment's packages."""
        return self.command(sys.executable, *arguments, limit_s=limit_s, cwd=cwd)

    def ziggurat(self, *arguments: str, limit_s: float = 120, cwd: str = "") -> Done:
        """Run the command line."""
        return self.command(ZIGGURAT, *arguments, limit_s=limit_s, cwd=cwd)

    def command(self, *command: str, limit_s: float = 120, cwd: str = "") -> Done:
        """Run a command to its end, or stop it with all it started."""
        process = self.start(*command, cwd=cwd)
        try:
            text, _ = process.communicate(timeout=limit_s * self.patience)
            return Done(process.returncode, text)
        except subprocess.TimeoutExpired:
            end(process, signal.SIGKILL)
            return Done(124, process.communicate()[0] + "\nran out of time")

    def start(self, *command: str, cwd: str = "", log: Path | None = None) -> subprocess.Popen[str]:
        """Start a command in a session of its own; its output in a pipe, or in a file."""
        out = subprocess.PIPE if log is None else log.open("w")
        return subprocess.Popen(
            command, cwd=self.path / cwd, env=self.environment, text=True, errors="replace",
            stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def until(self, fits: Callable[[], bool], limit_s: float) -> bool:
        """Wait for something; whether it came."""
        ends = time.monotonic() + limit_s * self.patience
        while not fits():
            if time.monotonic() > ends:
                return False
            time.sleep(0.1)
        return True


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    """Send a signal to a process and all that it started, and wait; returns its exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    return process.wait()


def remove(path: Path) -> None:
    """Remove a folder, if it is there."""
    shutil.rmtree(path, ignore_errors=True)
