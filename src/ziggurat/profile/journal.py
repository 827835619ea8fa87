"""The journal of a run's time: what every session's ledger said, about once a second.

A session is one life of the training process. A kill loses at most what passed since the last
line, and that is counted later as time between sessions, so nothing is counted twice or left out.
One line of ``ledger.jsonl``::

    {"session": "3f2c...", "began_unix_s": 1790000000.0, "time_unix_s": 1790000042.1, "step": 120,
     "ledger_s": {"launch": 3.1, "start": 2.0, "compile": 5.5, "data": 0.4, "step": 31.0, ...}}
"""

import dataclasses
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from ziggurat.core import json_lines
from ziggurat.profile.timers import StepTimer

_log = logging.getLogger(__name__)
LAUNCH = "launch"
"""Ledger line for the time from the process's start to its timer's: the interpreter and imports."""


@dataclasses.dataclass(frozen=True)
class LedgerEntry:
    """A session's ledger as it stood at some moment."""

    session: str
    began_unix_s: float
    """When the session's process started."""
    time_unix_s: float
    """The moment."""
    step: int
    """Steps done."""
    ledger_s: Mapping[str, float]
    """Seconds by phase since the session began; they sum to ``time_unix_s - began_unix_s``."""


class Journal:
    """Log of one session's ledger, written now and then.

    Args:
        path: the file, appended to.
        timer: the session's timer.
        every_s: seconds between entries.
        launched_s: seconds the process had lived when the timer was made; default: found out.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        timer: StepTimer,
        *,
        every_s: float | int = 1.0,
        launched_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self._timer, self._every_s, self._clock = timer, every_s, clock
        lived = _process_age_s(clock) if launched_s is None else launched_s + timer.wall_s()
        self._launch_s = max(lived - timer.wall_s(), 0.0)
        self._began = clock() - lived
        self._session = uuid.uuid4().hex[:12]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._next_s = 0.0
        self._failed = False

    def note(self, step: int, *, now: bool = False) -> None:
        """Append an entry if one is due, or if forced. A full disk stops no run: the entry is left
        out, and the log says so once."""
        passed = self._timer.wall_s()
        if not now and passed < self._next_s:
            return
        self._next_s = passed + self._every_s
        ledger = {LAUNCH: self._launch_s, **self._timer.ledger()}
        entry = {
            "session": self._session,
            "began_unix_s": self._began,
            "time_unix_s": self._began + sum(ledger.values()),
            "step": step,
            "ledger_s": {name: round(seconds, 6) for name, seconds in ledger.items()},
        }
        try:
            os.write(self._file, json.dumps(entry).encode() + b"\n")
        except OSError as error:
            if not self._failed:
                _log.warning("entries of the time journal left out: %s", error)
            self._failed = True

    def close(self, step: int) -> None:
        """Write a last entry and close."""
        self.note(step, now=True)
        os.close(self._file)


def read_journal(path: Path) -> list[list[LedgerEntry]]:
    """Read entries by session, in order; a line torn by a kill is left out.

    >>> read_journal(Path("nowhere/ledger.jsonl"))
    []
    """
    sessions: dict[str, list[LedgerEntry]] = {}
    for row in json_lines.read_log(path):
        try:
            entry = LedgerEntry(**row)
        except TypeError:
            continue
        sessions.setdefault(entry.session, []).append(entry)
    return list(sessions.values())


def _process_age_s(clock: Callable[[], float]) -> float:
    import psutil

    return max(clock() - psutil.Process().create_time(), 0.0)
