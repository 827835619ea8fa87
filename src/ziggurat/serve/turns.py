"""Scheduling of the event loop's thread beside threads of the process that compute.

Everything a client sees goes through the loop's thread, which works little and often. It waits for
three things: the garbage collector, which stops all threads; the interpreter's lock, which it gives
up and wants back at every system call, about ten times for each request; and a core. While two
threads compute, Python's and Linux's defaults make each of these waits 3 to 300 ms long, and the
last of 300 new connections is answered after seconds.

On Linux a niceness belongs to a thread, and any thread may take a higher one. Threads that compute
take one, so that the loop need not share its core equally with them; between processes of different
sessions or containers it makes no difference.
"""

import contextlib
import ctypes
import gc
import os
import struct
import sys
import threading
from collections.abc import Iterator

SWITCH_SECONDS = 0.0002
"""A thread that computes gives up the interpreter's lock after this time; Python's own is 5 ms."""
THRESHOLDS = (2000, 10, 50)
"""Thresholds of the collector's generations: a full collection comes after a million more objects
have been made than freed. With Python's own a burst of 2,048 prompts brings about ten full
collections, of 100 to 400 ms each."""
SLICE_NS = 100_000
"""The loop's time slice. A thread of a shorter slice need not wait for the end of another's, which
is 3 ms: Linux 6.12, EEVDF."""
PYTHON_NICE, NATIVE_NICE = 10, 14
"""Niceness of the process's other threads: of Python's, a tenth of the loop's share of a core; of
those that no Python code has started, which are XLA's and compute alone, a twentieth."""
_SWEEP_SECONDS = 0.5
_THREADS = "/proc/self/task"
_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}
"""Numbers of the system call sched_setattr, for which the C library has no function."""
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""Size, policy, flags, nice, priority, slice, deadline and period (linux/sched/types.h)."""
_RESET_ON_FORK = 1
_prompt = set[int]()
"""Threads with a short slice, by the system's number: they keep their priority."""


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Within it this thread, the process's main one, has its turn quickly.

    In any other thread the process is not the server's own, and nothing is done. The niceness of
    the other threads stays after it: the system lets nobody lower one again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    freeze()
    gc.set_threshold(*THRESHOLDS)
    sys.setswitchinterval(min(interval, SWITCH_SECONDS))
    sliced = set_slice(SLICE_NS)
    ended = threading.Event()
    threading.Thread(target=_yield_cores, args=(ended,), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if sliced:
            set_slice(0)
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _yield_cores(ended: threading.Event) -> None:
    """Give new threads their niceness until ``ended``."""
    while os.path.isdir(_THREADS):
        lower_others()
        if ended.wait(_SWEEP_SECONDS):
            return


def lower_others() -> None:
    """Raise the niceness of this process's threads that compute, to :data:`PYTHON_NICE` and
    :data:`NATIVE_NICE`; the main thread and those with a short slice keep theirs."""
    threads = [int(name) for name in os.listdir(_THREADS)]
    pythons = {thread.native_id for thread in threading.enumerate()}
    if None in pythons:  # one has not yet said its number, and would be taken for a native one
        return
    kept = {os.getpid(), *_prompt}  # the main thread has the process's number
    for thread in threads:
        if thread not in kept:
            raise_nice(thread, PYTHON_NICE if thread in pythons else NATIVE_NICE)


def raise_nice(process: int, nice: int) -> None:
    """Give a process or thread this niceness, unless it has ended or has a higher one.

    A child gets it from its parent, at once: its own code comes after a second of imports.
    """
    with contextlib.suppress(OSError, AttributeError):  # a system without them
        if os.getpriority(os.PRIO_PROCESS, process) < nice:
            os.setpriority(os.PRIO_PROCESS, process, nice)


def freeze() -> None:
    """Exclude all objects that exist now from garbage collection (``gc.freeze``): JAX, models and
    programs are about a million, and each full collection would visit them. Only the main thread
    does it; in others the call has no effect."""
    if threading.current_thread() is threading.main_thread():
        gc.freeze()


def set_slice(nanoseconds: int) -> bool:
    """Set this thread's time slice; threads and processes that it starts have the default one.

    Args:
        nanoseconds: the slice; 0 for the default.

    Returns:
        Whether the system took it; older ones ignore it.
    """
    number = _SET_ATTRIBUTES.get(os.uname().machine)
    if sys.platform != "linux" or number is None:
        return False
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    size = _ATTRIBUTES.size
    data = _ATTRIBUTES.pack(size, os.SCHED_OTHER, _RESET_ON_FORK, nice, 0, nanoseconds, 0, 0)
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL(None).syscall(number, 0, data, 0) == 0:
            change = _prompt.add if nanoseconds else _prompt.discard
            change(threading.get_native_id())
            return True
    return False
