"""One run whose first host is killed, on each engine, against one that nobody disturbed."""

import os
import signal
import threading
import time

import pytest
from tests.cluster.runs import Run

from ziggurat.cluster.record import ask, read_events
from ziggurat.core.errors import ClusterError

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def peace(folder):
    """The undisturbed run, with two hosts."""
    run = Run(folder, "peace", f"train.steps={STEPS}")
    with run.cluster(hosts=2) as cluster:
        outcome = run.train(cluster, 2)
    assert (outcome.generations, outcome.recoveries, outcome.stopped) == (1, 0, "")
    assert [value["status"] for value in outcome.values] == ["finished"] * 2
    assert [step for step, _ in run.curve()] == list(range(STEPS))
    return run


class Disturbance(threading.Thread):
    """Does something once the run has come to a step."""

    def __init__(self, cluster, step, action):
        super().__init__(daemon=True)
        self._cluster, self._step, self._action = cluster, step, action
        self.status = None

    def run(self):
        while (status := self._cluster.status())["step"] < self._step:
            time.sleep(0.01)
        self.status = status
        self._action(status)


def send(index, number):
    def action(status):
        row = next(row for row in status["hosts"] if row["index"] == index)
        os.kill(row["pid"], number)

    return action


def compare(run, peace, exact):
    assert [step for step, _ in run.curve()] == list(range(STEPS))
    for (step, loss), (_, expected) in zip(run.curve(), peace.curve(), strict=True):
        # sums over hosts come in another order when there are fewer of them
        wanted = expected if exact else pytest.approx(expected, rel=1e-4)
        assert loss == wanted, step
    seen, reference = run.digests(), peace.digests()
    assert seen == reference
    assert all(len(digests) == 1 for digests in seen.values())
    assert set(seen) == {(step, row) for step in range(STEPS) for row in range(12)}


def test_rank_0_is_killed_and_a_spare_takes_its_place(folder, peace):
    run = Run(folder, "killed", f"train.steps={STEPS}")
    with run.cluster(pause_s=0.1, hosts=2, spares=1, restart=False) as cluster:
        Disturbance(cluster, 5, send(0, signal.SIGKILL)).start()
        outcome = run.train(cluster, 2)
        account = cluster.ledger.account()
    assert outcome.recoveries == 1
    assert [value["status"] for value in outcome.values] == ["finished"] * 2
    compare(run, peace, exact=True)
    assert sum(account.seconds.values()) == pytest.approx(account.wall_s)
    assert account.seconds["step"] > 0
    assert account.seconds["reform"] > 0
    events = [event["event"] for event in read_events(run.directory / "cluster")]
    order = ["began", "formed", "resumed", "lost", "broken", "formed", "resumed", "recovered"]
    kept = iter(events)
    assert all(event in kept for event in order), events
    # the snapshot of step 5 or later was in memory, and disk had only step 4
    resumed = [e for e in read_events(run.directory / "cluster") if e["event"] == "resumed"]
    assert resumed[1]["step"] >= 5


def test_grown_by_command_then_a_host_hangs(folder, peace):
    """1 host, 2 by ``resize``, and 1 again when one is stopped with SIGSTOP."""
    run = Run(folder, "resized", f"train.steps={STEPS}")
    options = {"hosts": 1, "spares": 1, "restart": False, "silence_s": 3.0}
    with run.cluster(pause_s=0.2, **options) as cluster:

        def grow(status):
            assert status["wanted"] == 1
            with pytest.raises(ClusterError, match=r"5 hosts: .*expected 4 or 6"):
                ask(run.directory / "cluster", "resize", hosts=5)
            ask(run.directory / "cluster", "resize", hosts=2)

        def stop(status):
            send(1, signal.SIGSTOP)(status)

        Disturbance(cluster, 2, grow).start()
        Disturbance(cluster, 7, stop).start()
        outcome = run.train(cluster, 2)
    assert (outcome.generations, outcome.recoveries) == (3, 1)
    formed = [e for e in read_events(run.directory / "cluster") if e["event"] == "formed"]
    assert [len(event["hosts"]) for event in formed] == [1, 2, 1]
    compare(run, peace, exact=False)


@pytest.mark.chaos
def test_ray_loses_rank_0_and_starts_it_anew(folder, peace):
    run = Run(folder, "ray", f"train.steps={STEPS}")
    with run.cluster(engine="ray", pause_s=0.2, hosts=2) as cluster:
        Disturbance(cluster, 5, send(0, signal.SIGKILL)).start()
        outcome = run.train(cluster, 2)
    assert outcome.recoveries == 1
    compare(run, peace, exact=False)
