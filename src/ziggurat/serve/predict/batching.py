"""Dynamic batching: requests wait in a queue per model, one thread per device joins and runs them.

Requests are put in on the event loop. A device's thread takes the batch that is due first among all
models: a full one at once, another when its oldest request has waited ``max_queue_delay_us``. While
the thread is busy requests gather, so a loaded server batches even without any delay. Requests
leave a queue in the order in which they came. A batch of sizes that are not compiled yet is handed
to a thread that compiles and comes back to the device's thread afterwards; other batches run
meanwhile.
"""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Shaped

from ziggurat.core.errors import ZigguratError
from ziggurat.serve import turns
from ziggurat.serve.errors import EngineStopped, QueueFull, RequestError
from ziggurat.serve.predict.config import Batching
from ziggurat.serve.predict.manifest import BundleManifest
from ziggurat.serve.predict.program import Arrays, BundleProgram, Sizes, crop
from ziggurat.serve.predict.signature import BATCH
from ziggurat.serve.predict.statistics import Execution, Statistics

_log = logging.getLogger(__name__)
_now = time.monotonic_ns


class QueueTimeout(RequestError):
    """Error: the request waited longer than its own ``timeout`` allows."""

    status = 408
    code = "timeout"


class ProgramFailed(RequestError):
    """Error: the device could not run the request; the server's log says why."""

    status = 500
    kind = "server_error"


@dataclasses.dataclass(slots=True, eq=False)
class Waiting:
    """A request in a queue."""

    inputs: Arrays
    sizes: Sizes
    rows: int
    key: tuple[int, ...]
    """Padded sizes but for the batch; only requests of equal keys are joined."""
    future: "asyncio.Future[list[np.ndarray]]"
    arrived_ns: int
    deadline_ns: int
    started_ns: int = 0


class Queue:
    """Queue of one model version's requests.

    Args:
        scheduler: whose devices run them.
        manifest: the bundle's.
        programs: one for each of the scheduler's devices.
        batching: limits.
        statistics: is told how every request ends.
    """

    def __init__(
        self,
        scheduler: "BatchScheduler",
        manifest: BundleManifest,
        programs: Sequence[BundleProgram],
        batching: Batching,
        statistics: Statistics,
    ):
        self._scheduler, self._programs, self._batching = scheduler, programs, batching
        self._signature, self.statistics = manifest.signature, statistics
        self._delay_ns = batching.max_queue_delay_us * 1000
        self._joins = manifest.joins_rows
        self._most = batching.max_batch_size if self._joins else 1
        self._groups: dict[tuple[int, ...], collections.deque[Waiting]] = {}
        self._rows: dict[tuple[int, ...], int] = {}
        self.waiting = 0
        """Requests that wait."""
        self.compiling = 0
        """Requests whose program is being compiled."""
        self.closed = False

    async def infer(self, inputs: Arrays, timeout_us: int = 0) -> list[Shaped[np.ndarray, "..."]]:
        """Run a request; outputs in the signature's order.

        Args:
            inputs: by name, of the signature's types.
            timeout_us: longest wait in the queue (microseconds); 0 waits for ever.

        Raises:
            ServeError: a shape does not fit, the queue is full or closed, or the wait was too long.
        """
        arrived, rows = _now(), 1
        reason = "OTHER"
        try:
            sizes = self._signature.sizes({name: array.shape for name, array in inputs.items()})
            target = self._programs[0].bucket(sizes)
            rows = sizes.get(BATCH, 1)
            key = tuple(s for name, s in target.items() if name != BATCH or not self._joins)
            deadline = arrived + timeout_us * 1000 if timeout_us else 0
            future = asyncio.get_running_loop().create_future()
            request = Waiting(inputs, sizes, rows, key, future, arrived, deadline)
            reason = "REJECTED"
            self._scheduler.put(self, request, self._batching.max_queue)
            reason = "BACKEND"
            outputs = await future
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                reason = "CANCELED"
            elif isinstance(error, QueueTimeout):
                reason = "REJECTED"
            self.statistics.failed(reason, _now() - arrived)
            raise
        self.statistics.succeeded(rows, _now() - arrived, request.started_ns - arrived)
        return outputs

    def add(self, request: Waiting) -> None:
        """Add a request; the scheduler's lock is held."""
        self._groups.setdefault(request.key, collections.deque()).append(request)
        self._rows[request.key] = self._rows.get(request.key, 0) + request.rows
        self.waiting += 1

    def due(self) -> tuple[int, tuple[int, ...]] | None:
        """Time when the first batch should run, and its key; the scheduler's lock is held."""
        found = None
        for key, group in self._groups.items():
            full = self._rows[key] >= self._most
            when = group[0].arrived_ns + (0 if full else self._delay_ns)
            if found is None or when < found[0]:
                found = when, key
        return found

    def take(self, key: tuple[int, ...]) -> list[Waiting]:
        """Remove and return the next batch of a group; the scheduler's lock is held."""
        group, batch, rows = self._groups[key], [], 0
        while group and (not batch or rows + group[0].rows <= self._most):
            request = group.popleft()
            self.waiting -= 1
            self._rows[key] -= request.rows
            if request.future.cancelled():
                continue
            batch.append(request)
            rows += request.rows
        if not group:
            del self._groups[key], self._rows[key]
        return batch

    def drop(self) -> list[Waiting]:
        """Close the queue and refuse its waiting requests; the scheduler's lock is held."""
        left = [request for group in self._groups.values() for request in group]
        self._groups.clear()
        self._rows.clear()
        self.waiting, self.closed = 0, True
        return left

    def missing(self, batch: list[Waiting], device: int) -> Sizes | None:
        """Sizes of the program that must be compiled before a batch can run; ``None`` if there is
        one."""
        program = self._programs[device]
        target = program.bucket(self._sizes(batch))
        return None if program.has(target) else target

    def compile(self, batch: list[Waiting], device: int) -> None:
        """Compile a batch's program, unless nobody waits for it any more."""
        if not all(request.future.cancelled() for request in batch):
            target = self.missing(batch, device)
            if target is not None:
                self._programs[device].compile(target)

    def _sizes(self, batch: list[Waiting]) -> Sizes:
        sizes = dict(batch[0].sizes)
        if BATCH in sizes:
            sizes[BATCH] = sum(request.rows for request in batch)
        return sizes

    def run(self, batch: list[Waiting], device: int) -> None:
        """Execute a batch on a device's thread and hand the outputs to the event loop."""
        start = _now()
        late = [r for r in batch if r.deadline_ns and start > r.deadline_ns]
        for request in late:
            _settle(
                [
                    (
                        request,
                        QueueTimeout(
                            "request", found="a longer wait in the queue", expected="its timeout"
                        ),
                    )
                ]
            )
        gone = [request for request in batch if request.future.cancelled()]
        alive = [request for request in batch if request not in late and request not in gone]
        if not alive:
            return
        for request in alive:
            request.started_ns = start
        try:
            outcome, times = self._execute(alive, self._programs[device])
        except Exception as error:
            if len(alive) > 1:  # one request's trouble is not the others'
                for request in alive:
                    self.run([request], device)
                return
            if not isinstance(error, ZigguratError):
                _log.error("a program failed", exc_info=error)
                error = ProgramFailed("program", found=type(error).__name__, expected="outputs")
            _settle([(alive[0], error)])
            return
        _settle(outcome, lambda: self.statistics.executed(times, len(alive)))

    def _execute(
        self, batch: list[Waiting], program: BundleProgram
    ) -> tuple[list[tuple[Waiting, list[np.ndarray]]], Execution]:
        start = _now()
        rows = sum(request.rows for request in batch)
        target = program.bucket(self._sizes(batch))
        inputs = _join(batch, program.padded(target))
        joined = _now()
        outputs = [np.asarray(value) for value in program.execute(target, inputs)]
        ran = _now()
        parted = self._part(batch, outputs)
        return parted, Execution(rows, joined - start, ran - joined, _now() - ran)

    def _part(
        self, batch: list[Waiting], outputs: list[np.ndarray]
    ) -> list[tuple[Waiting, list[np.ndarray]]]:
        tensors = self._signature.outputs
        parted, at = [], 0
        for request in batch:
            own = outputs
            if self._joins:
                own = [array[at : at + request.rows] for array in outputs]
                at += request.rows
            parted.append(
                (request, [crop(a, t.shape, request.sizes) for a, t in zip(own, tensors)])
            )
        return parted


class BatchScheduler:
    """Scheduler with one thread per device, which runs the batch that is due first.

    Args:
        devices: how many.
    """

    def __init__(self, devices: int = 1):
        self._ready = threading.Condition()
        self._queues: dict[Queue, None] = {}
        self._running: collections.Counter[Queue] = collections.Counter()
        self._compiled: list[collections.deque[tuple[Queue, list[Waiting]]]] = [
            collections.deque() for _ in range(devices)
        ]
        """For each device the batches that can run now that their programs are compiled."""
        self._compiler = ThreadPoolExecutor(1, "compile")
        self._ended = False
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"device-{i}", daemon=True)
            for i in range(devices)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "BatchScheduler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, queue: Queue, request: Waiting, limit: int) -> None:
        """Queue a request.

        Raises:
            QueueFull: ``limit`` requests wait already.
            EngineStopped: the queue or the scheduler is closed.
        """
        with self._ready:
            if queue.closed or self._ended:
                raise EngineStopped("model", found="it is being unloaded", expected="a served one")
            if queue.waiting + queue.compiling >= limit:
                raise QueueFull(
                    "queue",
                    found=f"{limit} requests waiting",
                    expected="fewer",
                    fix="try again later",
                )
            queue.add(request)
            self._queues[queue] = None
            self._ready.notify()

    def retire(self, queue: Queue, linger_s: float = 0.0, seconds: float = 60.0) -> None:
        """Wait until the requests of a queue are answered, then drop it.

        Args:
            queue: no longer to be found by new requests.
            linger_s: how long it still takes those that had found it before (seconds).
            seconds: how long its requests may take; what waits then is refused.
        """
        with self._ready:
            self._ready.wait_for(lambda: self._ended, linger_s)
            queue.closed = True
            self._ready.notify_all()
            self._ready.wait_for(lambda: not queue.waiting and not self._running[queue], seconds)
            left = queue.drop()
            self._queues.pop(queue, None)
            self._running.pop(queue, None)
        _settle(
            [(r, EngineStopped("model", found="unloaded", expected="a served one")) for r in left]
        )

    def close(self) -> None:
        """Refuse waiting requests and end the threads after the running ones."""
        with self._ready:
            self._ended = True
            left = [request for queue in self._queues for request in queue.drop()]
            self._ready.notify_all()
            for ready in self._compiled:
                left += [request for _, batch in ready for request in batch]
                ready.clear()
        _settle([(r, EngineStopped("server", found="it ends", expected="")) for r in left])
        self._compiler.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            thread.join(60)

    def _work(self, device: int) -> None:
        turns.set_slice(turns.SLICE_NS)  # as the loop, it works little and often
        while (work := self._next(device)) is not None:
            queue, batch = work
            if self._to_compile(queue, batch, device):
                continue
            try:
                queue.run(batch, device)
            finally:
                self._finished(queue)

    def _finished(self, queue: Queue) -> None:
        with self._ready:
            self._running[queue] -= 1
            if queue.closed:
                self._ready.notify_all()

    def _to_compile(self, queue: Queue, batch: list[Waiting], device: int) -> bool:
        """Hand a batch to the thread that compiles, if it must be."""
        try:
            if queue.missing(batch, device) is None:
                return False
        except ZigguratError:
            return False  # told by the run, request by request
        with self._ready:
            if self._ended:
                return False
            queue.compiling += len(batch)
            self._compiler.submit(self._compile, queue, batch, device)
        return True

    def _compile(self, queue: Queue, batch: list[Waiting], device: int) -> None:
        failed: Exception | None = None
        try:
            queue.compile(batch, device)
        except Exception as error:
            _log.error("a program could not be compiled", exc_info=error)
            kind = type(error).__name__
            failed = ProgramFailed("program", found=kind, expected="one that compiles")
        with self._ready:
            queue.compiling -= len(batch)
            if failed is None and not self._ended:
                self._compiled[device].append((queue, batch))
                self._ready.notify_all()
                return
        error = failed or EngineStopped("server", found="it ends", expected="")
        _settle([(request, error) for request in batch])
        self._finished(queue)

    def _next(self, device: int) -> tuple[Queue, list[Waiting]] | None:
        with self._ready:
            while not self._ended:
                if self._compiled[device]:
                    return self._compiled[device].popleft()
                first: tuple[int, tuple[int, ...], Queue] | None = None
                for queue in self._queues:
                    due = queue.due()
                    if due is not None and (first is None or due[0] < first[0]):
                        first = (*due, queue)
                if first is None:
                    self._ready.wait()
                    continue
                wait = first[0] - _now()
                if wait > 0 and not first[2].closed:
                    self._ready.wait(wait / 1e9)
                    continue
                queue = first[2]
                batch = queue.take(first[1])
                if queue.waiting and len(self._threads) > 1:
                    self._ready.notify()
                if batch:
                    self._running[queue] += 1
                    return queue, batch
            return None


def _join(batch: list[Waiting], shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Inputs of a batch in arrays of the bucket's shapes, zeros after the last row."""
    if len(batch) == 1 and all(batch[0].inputs[n].shape == s for n, s in shapes.items()):
        return dict(batch[0].inputs)
    whole = {}
    for name, shape in shapes.items():
        array = np.zeros(shape, batch[0].inputs[name].dtype)
        at = 0
        for request in batch:
            part = request.inputs[name]
            if len(batch) == 1:
                array[tuple(map(slice, part.shape))] = part
            else:
                inner = tuple(map(slice, part.shape[1:]))
                array[(slice(at, at + request.rows), *inner)] = part
                at += request.rows
        whole[name] = array
    return whole


def _settle(outcome: Sequence[tuple[Waiting, list[np.ndarray] | Exception]], then=None) -> None:
    """Give requests their outputs or errors, on their event loop."""
    if not outcome:
        return

    def settle() -> None:
        if then is not None:
            then()
        for request, result in outcome:
            if request.future.done():
                continue
            if isinstance(result, Exception):
                request.future.set_exception(result)
            else:
                request.future.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop is gone when a server ends
        outcome[0][0].future.get_loop().call_soon_threadsafe(settle)
