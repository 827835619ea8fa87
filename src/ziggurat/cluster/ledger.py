"""Where the wall time of a cluster went: each second of the controller's life in one category.

Categories of the controller are ``init`` (hosts start), ``reform`` (a world is made) and ``detect``
(from the last word of a world to the news that it is broken). While a program runs, its first
process tells where its time goes, and these are the categories then: ``start``, ``compile``,
``data``, ``step``, ``checkpoint``. Steps that are done again because a world was lost before their
checkpoint are moved from ``step`` to ``replay``. The file has the form of
:mod:`ziggurat.profile.journal`: one session for each world, and between the lives of two
controllers nothing, which :func:`ziggurat.profile.goodput.goodput` counts as ``down``.

>>> now = [0.0]
>>> ledger = Ledger(clock=lambda: now[0])
>>> now[0] = 5.0
>>> ledger.charge("init")
>>> now[0] = 6.0
>>> ledger.report(0, {"compile": 1.0})
>>> now[0] = 8.0
>>> ledger.report(2, {"compile": 1.0, "step": 2.0})
>>> now[0] = 8.5
>>> ledger.ended("detect")            # a host is lost after two steps
>>> now[0] = 9.0
>>> ledger.charge("reform")
>>> now[0] = 10.0
>>> ledger.report(1, {"start": 1.0})  # one of them is done again
>>> now[0] = 12.0
>>> ledger.report(3, {"start": 1.0, "step": 2.0})
>>> account = ledger.account()
>>> account.wall_s, account.seconds["detect"], account.seconds["step"], account.seconds["replay"]
(12.0, 0.5, 3.0, 1.0)
"""

import dataclasses
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from ziggurat.profile.goodput import Goodput, goodput
from ziggurat.profile.journal import LedgerEntry
from ziggurat.profile.timers import UNACCOUNTED

_MOST_ENTRIES = 2000


class Ledger:
    """Account of the controller's wall time by category.

    Args:
        path: file to append to, if any.
        clock: seconds since the epoch.
        every_s: seconds between lines of the file.
    """

    def __init__(
        self,
        path: Path | None = None,
        clock: Callable[[], float] = time.time,
        every_s: float = 1.0,
    ):
        self._clock, self._every_s = clock, every_s
        self._file: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._sessions: list[list[LedgerEntry]] = []
        self._began = self._mark = clock()
        self._written = 0.0
        self._step = 0
        self._begin()

    def charge(self, name: str) -> None:
        """Book the time since the last call of this or :meth:`ended` under ``name``."""
        now = self._clock()
        self._own[name] = self._own.get(name, 0.0) + max(now - self._mark, 0.0)
        self._mark = now

    def report(self, step: int, ledger_s: Mapping[str, float]) -> None:
        """Book a program's own account of its time, after ``step`` steps."""
        self._told, self._step = dict(ledger_s), step
        now = self._clock()
        # what the program has not told yet, and the way of its words
        rest = now - self._mark - sum(self._told.values())
        entry = self._entry(now, {UNACCOUNTED: max(rest, 0.0)})
        self._entries.append(entry)
        if len(self._entries) > _MOST_ENTRIES:  # the first tells where this world began
            self._entries = [self._entries[0], *self._entries[2::2]]
        if now - self._written >= self._every_s:
            self._write(entry)

    def ended(self, name: str) -> None:
        """Book the end or loss of a program; time that it has not reported goes under ``name``."""
        now = self._clock()
        rest = max(now - self._mark - sum(self._told.values()), 0.0)
        self._own[name] = self._own.get(name, 0.0) + rest
        self._mark = now
        if self._entries:
            self._entries.append(self._entry(now, {}))
            self._write(self._entries[-1])
            self._sessions.append(self._entries)
            self._began = now
            self._begin()
        else:  # nothing is known of its steps: the next world continues with this account
            for phase, seconds in self._told.items():
                self._own[phase] = self._own.get(phase, 0.0) + seconds
            self._told = {}

    def account(self) -> Goodput:
        """The whole account so far."""
        now = self._clock()
        rest = max(now - self._mark - sum(self._told.values()), 0.0)
        current = [*self._entries, self._entry(now, {UNACCOUNTED: rest})]
        return goodput([*self._sessions, current])

    def close(self) -> None:
        """Write the last entry and close the file."""
        self._entries.append(self._entry(self._clock(), {}))
        self._write(self._entries[-1])
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _begin(self) -> None:
        self._session = uuid.uuid4().hex[:12]
        self._own: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._entries: list[LedgerEntry] = []

    def _entry(self, now: float, more: Mapping[str, float]) -> LedgerEntry:
        total = dict(self._own)
        for phases in (self._told, more):
            for name, seconds in phases.items():
                total[name] = total.get(name, 0.0) + seconds
        return LedgerEntry(self._session, self._began, now, self._step, total)

    def _write(self, entry: LedgerEntry) -> None:
        self._written = entry.time_unix_s
        if self._file is not None:
            os.write(self._file, json.dumps(dataclasses.asdict(entry)).encode() + b"\n")
