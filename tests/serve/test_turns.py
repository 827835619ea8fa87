import gc
import os
import struct
import subprocess
import sys
import threading

import pytest

from ziggurat.serve import turns


def state():
    return gc.get_threshold(), sys.getswitchinterval()


def test_the_main_thread_has_its_turn_quickly_and_all_is_put_back(monkeypatch):
    monkeypatch.setattr(turns, "lower_others", lambda: None)  # what cannot be put back
    before, frozen = state(), gc.get_freeze_count()
    with turns.quick():
        assert state()[0] == turns.THRESHOLDS
        assert state()[1] == pytest.approx(turns.SWITCH_SECONDS)
        assert gc.get_freeze_count() > frozen
    assert state() == before
    assert gc.get_freeze_count() == 0


def test_in_another_thread_the_process_is_left_as_it_is():
    seen = []

    def run():
        with turns.quick():
            turns.freeze()
            seen.append((state(), gc.get_freeze_count()))

    before = state(), gc.get_freeze_count()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_slice_is_of_this_thread_alone_and_leaves_its_priority():
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if not turns.set_slice(turns.SLICE_NS):
        pytest.skip("a system without time slices of threads")
    try:
        assert os.getpriority(os.PRIO_PROCESS, 0) == nice
        assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER
        assert turns.set_slice(turns.SLICE_NS), "a second time"
    finally:
        assert turns.set_slice(0)


def test_the_attributes_are_laid_out_as_linux_has_them():
    assert turns._ATTRIBUTES.size == 48 == struct.calcsize("=IIQiIQQQ")


THREADS = """
import os, threading, time
import jax
from ziggurat.serve import turns

jax.numpy.ones(8).sum().block_until_ready()  # XLA has its threads
ended, seen = threading.Event(), {}

def niceness():
    return {int(t): os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir("/proc/self/task")}

def compute():
    ended.wait(60)

def work():
    turns.set_slice(turns.SLICE_NS)
    ended.wait(60)

before = niceness()
own = os.getpriority(os.PRIO_PROCESS, 0)
with turns.quick():
    threads = {name: threading.Thread(target=call) for name, call in
               {"compute": compute, "work": work}.items()}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        now = niceness()
        if now[threads["compute"].native_id] > own:
            break
        time.sleep(0.05)
ended.set()
assert now.pop(os.getpid()) == own
assert now.pop(threads["compute"].native_id) == max(own, turns.PYTHON_NICE)
sliced = now.pop(threads["work"].native_id)
assert sliced == (own if turns._prompt else max(own, turns.PYTHON_NICE)), (sliced, own)
xla = [thread for thread in before if thread in now]
assert xla and all(now[thread] == max(own, turns.NATIVE_NICE) for thread in xla), now
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="niceness of threads is Linux's")
def test_threads_that_compute_leave_the_loop_its_core():
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "done\n", done.stderr[-3000:]
