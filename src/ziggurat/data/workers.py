"""Worker processes that make batches ahead, and that may die without changing anything.

A worker computes ``dataset.batch(step, rows)``, a pure function, so it has no state to lose: one
that was killed, or does not finish, is replaced and its steps are computed again. Steps are handed
out in order to whoever has room, and come back in order.

* A worker is a fresh interpreter (:mod:`ziggurat.data.interpreter`) that imports the data package
  and what the data set's pickle names.
* Batches travel through memory without a name (a memfd), so nothing stays in ``/dev/shm`` whoever
  is killed. Orders and answers are a few bytes on one socket per worker; there is no lock that a
  killed process could keep.
* The socket is the lifeline too: a worker whose parent is gone reads its end and exits.
"""

import collections
import contextlib
import heapq
import logging
import mmap
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing import connection
from typing import Protocol, runtime_checkable

from ziggurat.core.errors import DataError, ZigguratError
from ziggurat.core.protocols import Batch
from ziggurat.data import interpreter
from ziggurat.data.worker_process import SlotLayout, nameless_memory

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Workers that a step may cost before it is given up."""
START_S = 120.0
"""Least patience, in seconds, with a worker that has not said yet that it is ready."""
_TICK_S = 0.25


@runtime_checkable
class BatchMaker(Protocol):
    """Interface of a data set from which worker processes make batches; it is pickled once for
    all."""

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Rows of the batch of a step; the same whoever asks, of the same shapes in every step."""
        ...


def batches(
    dataset: BatchMaker,
    rows: slice | None,
    start: int,
    stop: int | None = None,
    *,
    processes: int,
    ahead: int = 2,
    patience_s: float = 60.0,
) -> Iterator[Batch]:
    """The batches of steps ``start`` to ``stop`` in order, made by worker processes.

    The first batch is made here, while the workers start. Arrays are copies and stay valid. Closing
    the iterator ends the workers.

    Args:
        dataset: picklable.
        rows: which rows of the global batch.
        start: first step.
        stop: step after the last; ``None``: never.
        processes: number of workers.
        ahead: batches each worker holds, finished or under way.
        patience_s: seconds that the caller waits for a worker to finish one step before it is
            replaced. Time in which nobody waits does not count, so a suspended job is no failure.

    Raises:
        DataError: a step failed on 3 workers in a row, or ``batch`` raised something that is no
            ZigguratError; a ZigguratError is raised as it is. Earlier steps are yielded first.
    """
    for name, value in (("processes", processes), ("ahead", ahead)):
        if value < 1:
            raise ValueError(f"{name}: found {value}, expected at least 1")
    return _batches(dataset, rows, start, stop, processes, ahead, patience_s)


def _batches(
    dataset: BatchMaker,
    rows: slice | None,
    start: int,
    stop: int | None,
    processes: int,
    ahead: int,
    patience_s: float,
) -> Iterator[Batch]:
    if stop is not None and start >= stop:
        return
    first = dataset.batch(start, rows)
    if stop == start + 1:
        yield first
        return
    layout = SlotLayout.of(first)
    job = pickle.dumps((dataset, rows, layout), protocol=pickle.HIGHEST_PROTOCOL)
    with _Pool(job, layout, start + 1, stop, processes, ahead, patience_s) as pool:
        yield first
        del first
        step = start + 1
        while stop is None or step < stop:
            yield pool.take(step)
            step += 1


class _Pool:
    """The workers of one iterator, and which of them has which step."""

    def __init__(
        self,
        job: bytes,
        layout: SlotLayout,
        first: int,
        stop: int | None,
        processes: int,
        ahead: int,
        patience_s: float,
    ):
        self._layout, self._processes, self._ahead = layout, processes, ahead
        self._next, self._stop, self._patience_s = first, stop, patience_s
        self._owner = os.getpid()
        self._job = nameless_memory(len(job))
        os.pwrite(self._job, job, 0)
        self._workers: list[_Worker] = []
        self._lost: list[int] = []
        self._failures: collections.Counter[int] = collections.Counter()
        self._done: dict[int, tuple[_Worker, int] | ZigguratError] = {}

    def __enter__(self) -> "_Pool":
        try:
            self._hand_out()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, step: int) -> Batch:
        """The batch of a step that was or will be handed out, waiting for it."""
        while step not in self._done:
            self._hand_out()
            self._listen()
        result = self._done.pop(step)
        if isinstance(result, ZigguratError):
            raise result
        worker, slot = result
        batch = worker.read(slot)
        self._hand_out()
        return batch

    def close(self) -> None:
        """End all workers; in a fork of the process that started them, leave them alone."""
        if os.getpid() != self._owner:
            return
        self._done.clear()
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.reap()
        self._workers.clear()
        if self._job >= 0:
            os.close(self._job)
            self._job = -1

    def _hand_out(self) -> None:
        """Give steps to workers with room, lost ones first; start workers that are missing."""
        while self._lost or self._stop is None or self._next < self._stop:
            if len(self._workers) < self._processes:
                self._workers.append(_Worker(self._job, self._layout, self._ahead))
            free = [worker for worker in self._workers if worker.free]
            if not free:
                return
            if self._lost:
                step = heapq.heappop(self._lost)
            else:
                step, self._next = self._next, self._next + 1
            min(free, key=lambda worker: len(worker.pending)).order(step)

    def _listen(self) -> None:
        """Wait a moment for answers; replace workers that died or took too long."""
        began = time.monotonic()
        ready = connection.wait([worker.link for worker in self._workers], _TICK_S)
        waited_s = min(time.monotonic() - began, _TICK_S)
        for worker in list(self._workers):
            if worker.link in ready:
                self._receive(worker)
            elif worker.pending:
                worker.waited_s += waited_s
                patience_s = self._patience_s if worker.ready else max(START_S, self._patience_s)
                if worker.waited_s > patience_s:
                    self._replace(worker, f"did not answer within {patience_s:g} s")

    def _receive(self, worker: "_Worker") -> None:
        try:
            answer = worker.link.recv()
        except (EOFError, OSError):
            self._replace(worker, None)
            return
        worker.waited_s, worker.ready = 0.0, True
        if answer is None:
            return
        step, error = answer
        expected, slot = worker.pending.popleft()
        assert step == expected
        del self._failures[step]
        self._done[step] = (worker, slot) if error is None else error

    def _replace(self, worker: "_Worker", why: str | None) -> None:
        """Do without a worker: its steps are lost, and the one it was at has failed once more."""
        worker.kill()
        ended = worker.reap()
        why = why or ended
        self._workers.remove(worker)
        for step, _ in worker.pending:
            heapq.heappush(self._lost, step)
        if not worker.pending:
            logger.warning("data worker process %d %s", worker.pid, why)
            return
        step = worker.pending[0][0]
        self._failures[step] += 1
        logger.warning(
            "data worker process %d %s, at step %d; replaced, attempt %d of %d",
            *(worker.pid, why, step, self._failures[step], ATTEMPTS),
        )
        if self._failures[step] == ATTEMPTS:
            self._lost.remove(step)
            heapq.heapify(self._lost)
            self._done[step] = DataError(
                f"batch of step {step}",
                found=f"{ATTEMPTS} worker processes failed at it, the last {why}",
                expected="a batch",
                fix="look for a lack of memory or a source that hangs, or set data.workers = 0",
            )


class _Worker:
    """One worker process as its parent sees it."""

    def __init__(self, job: int, layout: SlotLayout, ahead: int):
        self.link, theirs = connection.Pipe()
        self.free = list(range(ahead))
        self.pending: collections.deque[tuple[int, int]] = collections.deque()
        """Steps ordered and not answered, with their slots; the first is the one under way."""
        self.waited_s = 0.0
        """Seconds that the parent has waited since the last sign of life."""
        self.ready = False
        self._layout = layout
        memory = nameless_memory(ahead * layout.slot_bytes)
        try:
            self._memory = mmap.mmap(memory, ahead * layout.slot_bytes)
            descriptors = theirs.fileno(), job, memory
            self._process = interpreter.start(
                f"from ziggurat.data import worker_process; worker_process.serve{descriptors}",
                descriptors,
            )
        finally:
            os.close(memory)
            theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def order(self, step: int) -> None:
        """Ask for a step; that the worker is dead shows when it is listened to."""
        slot = self.free.pop()
        self.pending.append((step, slot))
        with contextlib.suppress(OSError):
            self.link.send((step, slot))

    def read(self, slot: int) -> Batch:
        """Copy a batch out of a slot of shared memory, and free the slot."""
        batch = {name: view.copy() for name, view in self._layout.views(self._memory, slot).items()}
        self.free.append(slot)
        return batch

    def kill(self) -> None:
        """End the process; its memory stays readable."""
        self.link.close()
        self._process.kill()

    def reap(self) -> str:
        """How the process ended."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # in a call of the kernel that cannot be interrupted
            return "does not end even after SIGKILL"
        if code >= 0:
            return f"ended with code {code}"
        number = -code
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return f"was ended by {name}"
