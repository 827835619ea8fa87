"""Make things ahead in a thread."""

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Iterator that makes up to ``count`` items of ``source`` in a thread before they are asked
    for.

    They are made by one thread; more would only wait for each other, since making a batch is
    copying. An error is raised where its item would have come. The thread ends with the items, with
    :meth:`close`, or when nobody holds this iterator any more.

    >>> list(Ahead(iter("abc"), 2))
    ['a', 'b', 'c']
    """

    def __init__(self, source: Iterator[T], count: int):
        self._made: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(count)
        stopped = threading.Event()
        self._ended = False
        arguments = (source, self._made, self._room, stopped)
        threading.Thread(target=_make, args=arguments, name="batches", daemon=True).start()
        self._close = weakref.finalize(self, _stop, stopped, self._room, self._made)

    def __iter__(self) -> "Ahead[T]":
        return self

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item, error = self._made.get()
        if error is not None:
            self._ended = True
            raise error
        self._room.release()
        return item

    def close(self) -> None:
        """Stop making items; items made and not taken are dropped."""
        self._ended = True
        self._close()


def _make(
    source: Iterator, made: queue.SimpleQueue, room: threading.Semaphore, stopped: threading.Event
) -> None:
    while True:
        room.acquire()
        if stopped.is_set():
            return
        try:
            item = next(source)
        except BaseException as error:  # StopIteration too ends the other side's loop
            made.put((None, error))
            return
        made.put((item, None))


def _stop(stopped: threading.Event, room: threading.Semaphore, made: queue.SimpleQueue) -> None:
    stopped.set()
    room.release()
    # Whoever waits in another thread must not wait forever.
    made.put((None, StopIteration()))
