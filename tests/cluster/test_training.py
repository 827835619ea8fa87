"""Runs that are disturbed, on each engine, against one that nobody disturbed."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from tests.cluster.conftest import PAUSE_S
from tests.cluster.runs import RUN, Run, start_cluster
from tests.compilation import QUICK

from ziggurat.cli.main import main
from ziggurat.cluster import HostLostError
from ziggurat.cluster.record import ask, read_events
from ziggurat.core.errors import ClusterError

STEPS = 12


@pytest.fixture(scope="module")
def peace(folder, cluster):
    """The undisturbed run, with two hosts from its first step on: sums over fewer differ."""
    wait_for_hosts(cluster, 3)
    run = Run(folder, "peace", f"train.steps={STEPS}")
    outcome = run.train(cluster, 2)
    assert (outcome.recoveries, outcome.stopped) == (0, "")
    assert [value["status"] for value in outcome.values] == ["finished"] * 2
    assert [step for step, _ in run.curve()] == list(range(STEPS))
    return run


class Disturbance(threading.Thread):
    """Does something once the run has come to a step."""

    def __init__(self, cluster, step, action):
        super().__init__(daemon=True)
        self._cluster, self._step, self._action = cluster, step, action
        self._before = cluster.status()["generation"]
        self.start()

    def run(self):
        while True:
            status = self._cluster.status()
            if status["generation"] >= self._before and status["step"] >= self._step:
                self._action(status)
                return
            time.sleep(0.01)


def kill(status, index=0, number=signal.SIGKILL):
    row = next(row for row in status["hosts"] if row["index"] == index)
    os.kill(row["pid"], number)


def compare(run, peace, exact):
    assert [step for step, _ in run.curve()] == list(range(STEPS))
    for (step, loss), (_, expected) in zip(run.curve(), peace.curve(), strict=True):
        # sums over hosts come in another order when there are fewer of them
        assert loss == (expected if exact else pytest.approx(expected, rel=1e-4)), step
    seen, reference = run.digests(), peace.digests()
    assert seen == reference
    assert all(len(digests) == 1 for digests in seen.values())
    assert set(seen) == {(step, row) for step in range(STEPS) for row in range(12)}


def events_of(directory, since):
    return [event for event in read_events(directory) if event["time_unix_s"] >= since]


@pytest.mark.slow
def test_rank_0_is_killed_and_a_spare_takes_its_place(folder, cluster, peace):
    run, began = Run(folder, "killed", f"train.steps={STEPS}"), time.time()
    wait_for_hosts(cluster, 3)
    Disturbance(cluster, 7, kill)
    outcome = run.train(cluster, 2)
    account = cluster.ledger.account()
    assert outcome.recoveries == 1
    assert [value["status"] for value in outcome.values] == ["finished"] * 2
    compare(run, peace, exact=True)
    assert sum(account.seconds.values()) == pytest.approx(account.wall_s)
    for name in ("step", "reform", "start"):
        assert account.seconds[name] > 0.0
    events = events_of(folder / "cluster", began)
    kept = iter([event["event"] for event in events])
    order = ("resumed", "lost", "broken", "formed", "resumed", "recovered", "ended")
    assert all(event in kept for event in order), events
    # a snapshot of step 5 or later was in memory, the disk had only step 4
    assert [event["step"] for event in events if event["event"] == "resumed"][1] >= 5


@pytest.mark.slow
def test_grown_by_command_then_a_host_hangs(folder, cluster, peace):
    """From 1 host to 2 by command; one of them is stopped with SIGSTOP, the spare steps in."""
    run, began = Run(folder, "resized", f"train.steps={STEPS}"), time.time()
    wait_for_hosts(cluster, 3)
    cluster.wanted.hosts = 1

    def grow(status):
        assert status["wanted"] == 1
        with pytest.raises(ClusterError, match=r"5 hosts: .*expected 4 or 6"):
            ask(folder / "cluster", "resize", hosts=5)
        ask(folder / "cluster", "resize", hosts=2)
        Disturbance(cluster, 7, lambda status: kill(status, 1, signal.SIGSTOP))

    Disturbance(cluster, 2, grow)
    outcome = run.train(cluster, 2)
    assert outcome.recoveries == 1
    events = events_of(folder / "cluster", began)
    formed = [len(event["hosts"]) for event in events if event["event"] == "formed"]
    assert formed[:2] == [1, 2]
    assert "no sign of life for 6 s" in str([e["how"] for e in events if e["event"] == "lost"])
    compare(run, peace, exact=False)


@pytest.mark.slow
def test_a_host_is_told_that_it_will_be_taken_away(folder, cluster, peace):
    run, began = Run(folder, "noticed", f"train.steps={STEPS}"), time.time()
    wait_for_hosts(cluster, 3)
    cluster.wanted.hosts = 2
    Disturbance(cluster, 4, lambda status: kill(status, 1, signal.SIGTERM))
    outcome = run.train(cluster, 2)
    assert (outcome.recoveries, outcome.stopped) == (0, "")  # nothing broke, nothing was done again
    events = [event["event"] for event in events_of(folder / "cluster", began)]
    assert "notice" in events
    assert "formed" in events[events.index("notice") :]
    compare(run, peace, exact=True)


@pytest.mark.slow
def test_the_controller_is_told_to_stop(folder, cluster, peace):
    run = Run(folder, "stopped", f"train.steps={STEPS}")
    wait_for_hosts(cluster, 3)
    Disturbance(cluster, 3, lambda status: os.kill(os.getpid(), signal.SIGTERM))
    outcome = run.train(cluster, 2)
    assert (outcome.stopped, outcome.recoveries) == ("SIGTERM", 0)
    steps = {value["step"] for value in outcome.values}
    assert len(steps) == 1  # all left after the same one
    assert 3 <= steps.pop() < STEPS
    assert run.train(cluster, 2).stopped == ""
    compare(run, peace, exact=True)


@pytest.mark.slow
def test_the_controller_is_killed(folder):
    """Its hosts end, and another controller continues with the run."""
    file = folder / "orphaned.toml"
    file.write_text(RUN)
    command = [sys.executable, "-m", "ziggurat.cli.main", "cluster", "run", str(file)]
    command += ["--hosts=1", "--set=name=orphaned", f"--set=output={folder}", "--train.steps=4000"]
    env = {**os.environ, "XLA_FLAGS": QUICK, "NOTING_PAUSE_S": "0"}
    log = open(folder / "orphaned.log", "w+b")  # noqa: SIM115
    controller = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    run, deadline = Run(folder, "orphaned"), time.monotonic() + 120
    while not (run.directory / "checkpoints" / "step_00000004").exists():
        assert controller.poll() is None, (folder / "orphaned.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (host,) = ask(run.directory / "cluster", "status")["hosts"]
    with pytest.raises(ClusterError, match="another controller that is at work there"):
        start_cluster(run.directory / "cluster")
    controller.kill()
    controller.wait()
    while psutil.pid_exists(host["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(ClusterError, match="no controller that answers"):
        ask(run.directory / "cluster", "status")
    done = run.curve()[-1][0]
    assert main(["cluster", "status", str(run.directory)]) == 0
    log.close()
    command[-1] = f"--train.steps={done + 8}"
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "finished: " in ended.stdout
    assert "wall time" in ended.stdout
    assert [step for step, _ in run.curve()] == list(range(done + 8))


def wait_for_hosts(cluster, count):
    """Spares that are on their way are used at once when they are there, and a run begins with the
    hosts that are: tests before this one may have killed some of them."""
    deadline = time.monotonic() + 300
    while len(cluster.names) < count:
        assert time.monotonic() < deadline, cluster.names
        cluster.run("os:getpid")
        time.sleep(0.1)


@pytest.mark.chaos
def test_ray_starts_watches_and_replaces_hosts(folder):
    """Twenty kills of a training run on Ray: ``python -m tests.cluster.chaos --engine ray``."""
    with start_cluster(folder / "ray", PAUSE_S, engine="ray", hosts=1) as cluster:
        (before,) = cluster.run("os:getpid")
        with pytest.raises(HostLostError):
            cluster.run("os:kill", before, signal.SIGKILL)
        (after,) = cluster.run("os:getpid")
    assert after != before
