"""One worker process of :mod:`ziggurat.data.workers`: what runs in it, and its shared memory.

>>> layout = SlotLayout.of({"tokens": np.arange(6, dtype=np.int32).reshape(2, 3)})
>>> slots = mmap.mmap(nameless_memory(2 * layout.slot_bytes), 2 * layout.slot_bytes)
>>> layout.write(slots, 1, {"tokens": np.ones((2, 3), np.int32)}, step=0)
>>> layout.views(slots, 1)["tokens"].tolist(), layout.views(slots, 0)["tokens"].any().item()
([[1, 1, 1], [1, 1, 1]], False)
"""

import contextlib
import dataclasses
import mmap
import os
import pickle
import queue
import tempfile
import threading
import traceback
from multiprocessing import connection
from typing import Any

import numpy as np

from ziggurat.core.errors import DataError, ZigguratError
from ziggurat.core.protocols import Batch

_ALIGN = 64


@dataclasses.dataclass(frozen=True)
class SlotLayout:
    """Offsets of a batch's arrays in a slot of shared memory."""

    fields: tuple[tuple[str, str, tuple[int, ...], int], ...]
    """Name, type, shape and first byte of each."""
    slot_bytes: int

    @classmethod
    def of(cls, batch: Batch) -> "SlotLayout":
        """Compute the layout for batches like this one."""
        fields, end = [], 0
        for name, array in batch.items():
            fields.append((name, array.dtype.str, tuple(array.shape), end))
            end += -(-array.nbytes // _ALIGN) * _ALIGN
        return cls(tuple(fields), max(end, _ALIGN))

    def views(self, memory: mmap.mmap, slot: int) -> Batch:
        """Views of a slot's arrays, without copies."""
        base = slot * self.slot_bytes
        return {
            name: np.ndarray(shape, np.dtype(dtype), memory, base + offset)
            for name, dtype, shape, offset in self.fields
        }

    def write(self, memory: mmap.mmap, slot: int, batch: Batch, step: int) -> None:
        """Copy a batch into a slot.

        Raises:
            DataError: it has other arrays than the first batch.
        """
        found = SlotLayout.of(batch)
        if found != self:
            raise DataError(
                f"batch of step {step}",
                found=[field[:3] for field in found.fields],
                expected=f"the arrays of the first batch, {[field[:3] for field in self.fields]}",
            )
        for name, view in self.views(memory, slot).items():
            np.copyto(view, batch[name])


def nameless_memory(size: int) -> int:
    """Create shared memory that no directory lists and that is gone with its last user; returns the
    file descriptor."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ziggurat-batches", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


def serve(link: int, job: int, memory: int) -> None:
    """Run a data worker process: answer orders until the parent is gone.

    Args:
        link: file descriptor of the socket to the parent.
        job: of the pickled data set, rows and layout.
        memory: of the slots.
    """
    os.dup2(2, 1)  # standard output belongs to the parent's results
    parent = connection.Connection(link)
    orders: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(parent, orders), daemon=True).start()
    dataset: Any = None
    rows, layout, failure = None, None, None
    with contextlib.suppress(OSError):  # the parent is gone: the reader ends the process
        try:
            with mmap.mmap(job, 0, access=mmap.ACCESS_READ) as pickled:
                dataset, rows, layout = pickle.loads(pickled)
        except Exception as error:
            failure = _portable("data set in a worker process", error)
        slots = mmap.mmap(memory, 0)
        parent.send(None)
        while True:
            step, slot = orders.get()
            answer = failure
            if layout is not None:
                answer = _make(dataset, rows, layout, slots, step, slot)
            parent.send((step, answer))


def _make(
    dataset: Any, rows: slice | None, layout: SlotLayout, slots: mmap.mmap, step: int, slot: int
) -> ZigguratError | None:
    try:
        layout.write(slots, slot, dataset.batch(step, rows), step)
    except Exception as error:
        return _portable(f"batch of step {step}", error)
    return None


def _portable(what: str, error: Exception) -> ZigguratError:
    """``error`` as something that the parent can raise, with a note where it happened."""
    line = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)} line {place.lineno}"
    portable: ZigguratError = DataError(what, found=f"{line} ({where})")
    if isinstance(error, ZigguratError):
        with contextlib.suppress(Exception):  # one that cannot be pickled is told, not sent
            portable = pickle.loads(pickle.dumps(error))
    portable.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    return portable


def _read_orders(parent: connection.Connection, orders: queue.SimpleQueue) -> None:
    """Pass orders on, and end the process when there is nobody left to work for."""
    while True:
        try:
            orders.put(parent.recv())
        except (EOFError, OSError):
            os._exit(0)
