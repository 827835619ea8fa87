import gc
import os
import struct
import sys
import threading

import pytest

from ziggurat.serve import turns


def state():
    return gc.get_threshold(), sys.getswitchinterval()


def test_the_main_thread_has_its_turn_quickly_and_all_is_put_back():
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
