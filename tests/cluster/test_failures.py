"""Every kind of failure, with and without progress: how the program ends, and after how many
worlds."""

import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from tests.cluster import failing
from tests.compilation import QUICK

from ziggurat.cluster import Cluster, HostError, messages
from ziggurat.cluster.budget import FailureBudget
from ziggurat.cluster.hosts import Host, Hosts
from ziggurat.cluster.starts import STARTS, Starts
from ziggurat.cluster.worker import compiling
from ziggurat.core.errors import ClusterError

MOST = 2
"""Failures that the cluster of these tests bears."""
OWN = {
    "runtime": "RuntimeError: Connection string",
    "connection": "OwnConnectionError: Connection string",
    "os": r"ConnectionResetError: \[Errno 104\]",
    "timeout": "TimeoutError: DEADLINE_EXCEEDED",
    "memory": "MemoryError: UNAVAILABLE",
    "derived": "Derived: UNAVAILABLE: mine",
    "callback": "JaxRuntimeError: INTERNAL: CpuCallback error",
    "device memory": "JaxRuntimeError: RESOURCE_EXHAUSTED",
    "chained": "ValueError: no such shard",
}
"""Mistakes of the program's own, whatever their texts say."""
FAST = {"XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def small():
    options = {"patience_s": 2.0, "max_failures": MOST, "failure_window_s": float("inf")}
    with Cluster(hosts=2, env=FAST, **options) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("kind", "at"), [*((kind, 6) for kind in OWN), ("runtime", 0), ("callback", 0)]
)
def test_a_mistake_of_the_program_ends_it_in_its_first_world(small, kind, at):
    before = small.status()["generation"]
    with pytest.raises(HostError, match=f"host-1: {OWN[kind]}") as caught:
        small.train(failing.steps, kind, at)
    assert caught.value.host == "host-1"
    assert "in fail" in caught.value.traceback
    assert "on host-1" in caught.value.__notes__[0]
    assert small.status()["generation"] <= before + 1


@pytest.mark.parametrize("at", [0, 6], ids=["at once", "after progress"])
def test_what_looks_like_a_lost_peer_is_tried_again_a_few_times(small, at):
    before = small.status()["generation"]
    with pytest.raises(ClusterError, match=r"max_failures = 2\).*Gloo all-reduce failed") as caught:
        small.train(failing.steps, "collective", at)
    assert not isinstance(caught.value, HostError)
    cause = caught.value.__cause__
    assert isinstance(cause, HostError)
    assert cause.host == "host-1"
    assert "in fail" in caught.value.__notes__[0]  # the traceback of there
    assert MOST <= small.status()["generation"] - before <= MOST + 1


def test_the_first_interrupt_ends_a_program_whose_world_breaks(small):
    """No world is made any more for a program that was asked to leave."""
    before = small.status()["generation"]

    def interrupt():
        while small.status()["generation"] == before:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    small.wanted.stop = ""
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    outcome = small.train(failing.wait_and_fail, 1.5)
    assert (outcome.stopped, outcome.values, outcome.recoveries) == ("SIGINT", [], 1)
    assert small.status()["generation"] == before + 1


@pytest.mark.chaos
@pytest.mark.parametrize(("kind", "said"), [("exit", "exit code 9"), ("kill", "killed by SIGKILL")])
@pytest.mark.parametrize("at", [0, 6], ids=["at once", "after progress"])
def test_a_host_that_always_dies_ends_the_run(kind, said, at):
    with Cluster(hosts=2, env=FAST, max_failures=1) as cluster:
        with pytest.raises(ClusterError, match=rf"max_failures = 1\).*host-\d {said}"):
            cluster.train(failing.steps, kind, at)
        assert cluster.status()["generation"] <= 3


@pytest.mark.chaos
def test_a_host_that_dies_once_costs_one_world(tmp_path):
    with Cluster(hosts=2, env=FAST, max_failures=1) as cluster:
        outcome = cluster.train(failing.steps, "kill", 6, str(tmp_path / "once"))
    assert (outcome.recoveries, outcome.stopped) == (1, "")


@pytest.mark.chaos
def test_a_host_that_compiles_outlives_another_ones_death(tmp_path):
    """It cannot be called back while it compiles, for four times as long as anybody's patience."""
    options = {"patience_s": 2.0, "silence_s": 6.0, "step_deadline_s": 4.0}
    with Cluster(hosts=2, env=FAST, restart=False, **options) as cluster:
        (first, _) = cluster.run("os:getpid")
        outcome = cluster.train(failing.compile_long, str(tmp_path), 9.0)
        assert outcome.recoveries == 1
        assert outcome.values == [first]  # the same process, in a world of its own


def test_compiling_is_seen_while_it_goes_on():
    def program(x):
        for turn in range(60):
            x = jnp.tanh(x @ x + turn)
        return x

    thread = threading.Thread(target=lambda: jax.jit(program).lower(jnp.ones((8, 8))).compile())
    assert not compiling()
    thread.start()
    seen = False
    while thread.is_alive():
        seen |= compiling()
        time.sleep(0.01)
    assert seen
    assert not compiling()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("failures", "spent_at"),
    [
        ([(0, 5), (1, 5), (2, 5), (3, 5)], 3),  # in a row
        ([(0, 5), (500, 5), (1000, 5), (1500, 5)], 3),  # rarely, but always at the same step
        ([(0, 5), (500, 9), (1000, 13), (1500, 17)], None),  # rarely, and further each time
        ([(0, 5), (1, 6), (2, 7), (3, 8)], 3),  # a step each time is no progress to speak of
        ([(0, 5), (500, 4), (1000, 3), (1500, 2)], 3),  # back to older checkpoints
    ],
)
def test_the_budget(failures, spent_at):
    clock = Clock()
    budget = FailureBudget(most=3, window_s=100.0, clock=clock)
    over = None
    for number, (when, step) in enumerate(failures):
        clock.now = float(when)
        if budget.spend(step) and over is None:
            over = number
    assert over == spent_at


def test_an_infinite_window_is_a_total():
    clock = Clock()
    budget = FailureBudget(most=3, window_s=float("inf"), clock=clock)
    spent = []
    for day in range(5):
        clock.now = 86400.0 * day
        spent.append(budget.spend(1000 * day))
    assert spent == [False, False, False, True, True]


@pytest.mark.parametrize(
    "wrong", [{"max_failures": -1}, {"failure_window_s": -1.0}, {"failure_window_s": float("nan")}]
)
def test_wrong_budgets_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ClusterError, match=f"{name}: found"):
        Cluster(hosts=1, **wrong)


def test_a_host_is_not_started_for_ever():
    """By name: too many starts in a row that fail, or too many losses."""

    class Counted(Hosts):
        def __init__(self):  # starts nothing
            self.alive, self.started = {}, []

        def start(self, name):
            self.started.append(name)
            return Host(name, "")

    hosts = Counted()
    starts = Starts(hosts, restart=True, budget=lambda: FailureBudget(most=4, window_s=60.0))
    kinds = {"host-0": Host("host-0", "1"), "host-1": Host("host-1", "2", pid=7)}
    for _ in range(20):
        before = len(hosts.started)
        starts.start_missing([], 1, first=False)
        for name in hosts.started[before:]:  # the first dies before it is ready, the second later
            starts.note(kinds[name], messages.Ended("exit code 5"), 0)
    assert [hosts.started.count(name) for name in kinds] == [STARTS, 5]
    assert len(hosts.started) == STARTS + 5
