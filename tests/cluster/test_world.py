"""Leaving at a boundary: all at the same step, whatever each was doing."""

import random
import threading
import time

from ziggurat.cluster.world import World


def run(world, barrier, pauses, left):
    """A program in lockstep with its peers, as a collective in each step makes it."""
    step = 0
    while not world.after(step):
        barrier.wait(10)
        time.sleep(next(pauses))
        step += 1
    left.append(step)


def test_all_leave_at_the_same_step():
    chance = random.Random(1)
    for _ in range(20):
        barrier, left = threading.Barrier(3), []
        worlds = [World(f"host-{n}", 1, n, 3, lambda step, ledger: None) for n in range(3)]
        threads = [
            threading.Thread(
                target=run,
                args=(
                    world,
                    barrier,
                    iter(lambda r=random.Random(chance.random()): r.uniform(0, 2e-3), None),
                    left,
                ),
                daemon=True,
            )
            for world in worlds
        ]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0, 0.02))
        held = []
        for world in worlds:  # the commands arrive one after another
            held.append(world.hold())
            time.sleep(chance.uniform(0, 2e-3))
        for world in worlds:
            world.go(1 + max(held))
            time.sleep(chance.uniform(0, 2e-3))
        for thread in threads:
            thread.join(10)
        assert left == [1 + max(held)] * 3
        assert all(world.left for world in worlds)


def test_going_on_without_leaving():
    world = World("host-0", 1, 0, 1, lambda step, ledger: None)
    assert world.hold() == -1
    world.go(None)
    assert not world.after(5)
    assert not world.left


def test_another_call_in_the_same_world():
    world = World("host-0", 3, 1, 2, lambda step, ledger: None)
    world.hold()
    world.go(4)
    assert world.after(4)
    again = world.again()
    assert not again.after(4)
    assert (again.generation, again.index, again.count, again.left) == (3, 1, 2, False)


def test_reports_are_sparse():
    told = []
    world = World("host-0", 1, 0, 1, lambda step, ledger: told.append(step))
    for step in range(1000):
        world.report(step, {})
    world.report(1000, {}, now=True)
    assert told[:2] == [0, 1]
    assert told[-1] == 1000
    assert len(told) < 100
