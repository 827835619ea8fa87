"""Makes the parts of a token store, in this process or in several, and resumes where a killed one
stopped.

The sources are cut into units of work that follow from their files alone; each gives a part in a
directory beside the store's. So the parts, and the store they are joined to, are the same bytes
whatever the number of processes and however often they are killed.
"""

import collections
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from ziggurat.core import atomic
from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data.encode import DocumentEncoder
from ziggurat.data.parts import StorePart, name_of, open_part, write_part
from ziggurat.data.prepare_worker import PrepareWorker, packed
from ziggurat.data.sources import Source
from ziggurat.data.sources.reading import Unit

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a unit of work is given to a process before its deaths count as its own fault."""

Progress = Callable[[int, int], None]
"""Called with the documents and tokens done so far."""


def make_parts(
    sources: Sequence[Source],
    units: Sequence[Unit],
    tokenizer: Tokenizer,
    staging: Path,
    learn: bool,
    progress: Progress | None = None,
    workers: int = 0,
) -> dict[int, StorePart]:
    """Make the parts of all units, and reuse those already in ``staging``.

    Units behind a source's limit, or behind a failure that reading the sources from front to back
    would meet, are left out.

    Args:
        sources: what to read.
        units: :func:`ziggurat.data.sources.reading.units` of them.
        tokenizer: must have eos; with ``workers``, one that can be pickled.
        staging: directory of the parts; hold its :func:`lock`.
        learn: keep which tokens are learned.
        progress: called now and then.
        workers: processes; 0 does the work in this one.

    Raises:
        DataError: the tokenizer has no eos or cannot be sent; or processes died again and again.
    """
    atomic.sweep(staging)
    schedule = _Schedule(sources, units)
    for number, unit in enumerate(units):
        part = open_part(staging / name_of(number), sources[unit.source], unit)
        if part is not None:
            schedule.add(number, part)
    if schedule.parts:
        logger.info("%d of %d parts were there already", len(schedule.parts), len(units))
    told = _Told(schedule, progress)
    if workers and len(units) > 1:
        _in_processes(schedule, packed(tokenizer, learn), staging, told, workers)
        return schedule.parts
    encoder = DocumentEncoder(tokenizer)
    while (number := schedule.next()) is not None:
        unit = units[number]

        def tell(documents: int, tokens: int, number: int = number) -> None:
            told(number, documents, tokens)

        path = staging / name_of(number)
        schedule.add(number, write_part(sources[unit.source], unit, path, encoder, learn, tell))
    return schedule.parts


@contextlib.contextmanager
def lock(staging: Path) -> Iterator[None]:
    """Hold a store's staging directory, made if it is missing; waits while another process does.

    The lock ends with the process that holds it, however that ends. Where the system has no
    ``flock``, two processes must not prepare one store at once.
    """
    while True:
        staging.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(staging / "lock", os.O_CREAT | os.O_RDWR)
        except FileNotFoundError:
            continue  # removed in between by whoever has finished the store
        try:
            _wait_for(descriptor, staging)
            if _is_still(descriptor, staging / "lock"):
                yield
                return
        finally:
            os.close(descriptor)


def _wait_for(descriptor: int, staging: Path) -> None:
    try:
        import fcntl
    except ImportError:  # a system without such locks
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("another process works in %s; waiting for it", staging)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the locked file is the one that has the name, not one removed while we waited."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def discard(staging: Path) -> None:
    """Remove the parts; a process that waits for the lock then starts anew."""
    shutil.rmtree(staging, ignore_errors=True)


class _Schedule:
    """Which unit comes next, and what is done."""

    def __init__(self, sources: Sequence[Source], units: Sequence[Unit]):
        self.sources, self.units = sources, units
        self.parts: dict[int, StorePart] = {}
        self._queue = collections.deque(range(len(units)))
        self._failed: list[int] = []

    def next(self) -> int | None:
        """The next unit to work on; None if there is none, or none before a failure."""
        while self._queue:
            number = self._queue[0]
            if number in self.parts or self._behind_limit(number):
                self._queue.popleft()
            elif any(number > failed and self._counts(failed) for failed in self._failed):
                return None
            else:
                return self._queue.popleft()
        return None

    def add(self, number: int, part: StorePart) -> None:
        """A unit is done."""
        self.parts[number] = part
        if part.facts["failure"] is not None:
            self._failed.append(number)

    def give_back(self, number: int) -> None:
        """A unit is to be done by another process."""
        self._queue.appendleft(number)

    def _behind_limit(self, number: int) -> bool:
        limit = self.sources[self.units[number].source].max_documents
        return limit is not None and self._before(number) >= limit

    def _counts(self, failed: int) -> bool:
        """Whether reading in order would meet the failure, as far as is known."""
        limit = self.sources[self.units[failed].source].max_documents
        return limit is None or self._before(failed) + self.parts[failed].documents < limit

    def _before(self, number: int) -> int:
        """Documents of the units of the same source before this one, so far."""
        source = self.units[number].source
        return sum(
            part.documents
            for other, part in self.parts.items()
            if other < number and self.units[other].source == source
        )


class _Told:
    """Adds up what the units say, and passes it on when it has changed."""

    def __init__(self, schedule: _Schedule, progress: Progress | None):
        self._progress = progress
        self._counts: dict[int, tuple[int, int]] = {
            number: (part.documents, part.tokens) for number, part in schedule.parts.items()
        }
        self._documents = sum(documents for documents, _ in self._counts.values())
        self._tokens = sum(tokens for _, tokens in self._counts.values())
        if progress is not None and self._counts:
            progress(self._documents, self._tokens)

    def __call__(self, number: int, documents: int, tokens: int) -> None:
        before = self._counts.get(number, (0, 0))
        self._counts[number] = (documents, tokens)
        self._documents += documents - before[0]
        self._tokens += tokens - before[1]
        if self._progress is not None and before != (documents, tokens):
            self._progress(self._documents, self._tokens)


def _in_processes(
    schedule: _Schedule, job: bytes, staging: Path, told: _Told, workers: int
) -> None:
    """Give units to processes until all are done; one that dies is replaced."""
    attempts: collections.Counter[int] = collections.Counter()
    idle: list[PrepareWorker] = []
    busy: dict[object, PrepareWorker] = {}
    try:
        while True:
            while len(busy) < workers and (number := schedule.next()) is not None:
                worker = idle.pop() if idle else PrepareWorker(job)
                unit = schedule.units[number]
                path = staging / name_of(number)
                worker.give(number, schedule.sources[unit.source], unit, path)
                busy[worker.connection] = worker
            if not busy:
                return
            for connection in wait([worker.connection for worker in busy.values()]):
                worker = busy[connection]
                if not _receive(worker, schedule, told, attempts):
                    del busy[connection]
                    if worker.process.returncode is None:
                        idle.append(worker)
    finally:
        for worker in [*idle, *busy.values()]:
            worker.end()


def _receive(
    worker: PrepareWorker, schedule: _Schedule, told: _Told, attempts: collections.Counter[int]
) -> bool:
    """Take one message; returns whether the worker is still at its unit."""
    number = worker.number
    try:
        kind, content = worker.connection.recv()
    except (EOFError, OSError):
        code = worker.end(patience=5.0)
        _lost(schedule, number, code, attempts)
        told(number, 0, 0)
        return False
    if kind == "told":
        told(number, *content)
        return True
    if kind == "failed":
        raise content
    schedule.add(number, content)
    told(number, content.documents, content.tokens)
    return False


def _lost(schedule: _Schedule, number: int, code: int, attempts: collections.Counter[int]) -> None:
    """Put back what a dead worker did.

    Raises:
        DataError: the same unit ended several.
    """
    attempts[number] += 1
    first = schedule.units[number].pieces[0].file.name
    cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if attempts[number] == ATTEMPTS:
        raise DataError(
            f"tokenising from {first}",
            found=f"{ATTEMPTS} worker processes that died, the last one {cause}",
            expected="a process that lives",
            fix="use fewer workers if memory ran out; finished parts are kept",
        )
    logger.warning("a worker process was %s at %s; another one takes its work", cause, first)
    schedule.give_back(number)
