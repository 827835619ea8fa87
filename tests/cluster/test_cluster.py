"""Functions on hosts of both engines: values, output, errors, and hosts that die."""

import os
import signal
import threading
import time

import pytest
from tests.cluster import programs

from ziggurat.cluster import Cluster, HostError, HostLostError
from ziggurat.core.errors import ClusterError, EnvironmentError


@pytest.mark.slow
def test_values_and_output_come_back_with_the_host(cluster, printed):
    first, second = cluster.run(programs.whoami, "hello")
    assert first != second
    deadline = time.monotonic() + 10
    wanted = {("host-0", f"hello from {first}"), ("host-1", f"hello from {second}")}
    wanted |= {("host-0", "a warning"), ("host-1", "a warning")}
    while not wanted <= set(printed) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert wanted <= set(printed)
    assert cluster.run(programs.whoami, "you", hosts=["host-1"]) == [second]


def test_one_world_whose_service_is_here(cluster):
    assert cluster.run("jax:process_count") == [2, 2]
    assert cluster.run("jax:process_index") == [0, 1]
    assert cluster.run(programs.total) == [2.0, 2.0]


def test_what_only_this_script_knows_goes_by_value(cluster):
    factor = 3
    assert cluster.run(lambda x: x * factor, 14) == [42, 42]


def test_an_exception_names_its_host(cluster):
    with pytest.raises(HostError) as caught:
        cluster.run(programs.fail_on, 1)
    assert str(caught.value) == "host-1: ValueError: no such row"
    assert "in fail_on" in caught.value.traceback
    assert "on host-1" in caught.value.__notes__[0]
    assert cluster.run(programs.total) == [2.0, 2.0]  # nothing broke


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no_such_module:f", r"host-[01]: a function .*No module named 'no_such_module'.*PYTHON"),
        ("math:no_such", "host-[01]: .*no_such"),
        ("not a path", 'expected a function or "module:name"'),
        (threading.Lock().acquire, "sending a call of acquire: .*cannot pickle"),
    ],
)
def test_functions_that_cannot_be_called(cluster, function, said):
    with pytest.raises(ClusterError, match=said):
        cluster.run(function)


def test_a_host_that_dies_is_replaced(cluster):
    before = cluster.run("os:getpid")
    timer = threading.Timer(0.3, os.kill, (before[0], signal.SIGKILL))
    timer.start()
    with pytest.raises(HostLostError, match="host-0 was lost"):
        cluster.run(programs.sleep, 2)
    assert cluster.run(programs.total) == [2.0, 2.0]
    after = cluster.run("os:getpid")
    assert after[0] != before[0]
    states = {row["host"]: row["state"] for row in cluster.status()["hosts"]}
    assert states.pop("host-0") in ("starting", "ready")  # anew, as a spare
    assert states == {"host-1": "in the world", "host-2": "in the world"}


def test_a_host_that_hangs_and_still_lives(cluster, printed, tmp_path, monkeypatch):
    """The one that lags prints where it is, and is killed; the program continues without it."""
    monkeypatch.setattr(cluster, "_step_deadline_s", 2.0)
    outcome = cluster.train(programs.count_and_hang, str(tmp_path), 8)
    assert outcome.recoveries == 1
    assert {steps for steps, _ in outcome.values} == {8}
    assert any("in count_and_hang" in line for _, line in printed)


def test_settings_that_cannot_be(tmp_path):
    for options, said in (
        ({"hosts": 0}, "hosts: found 0"),
        ({"engine": "rai"}, "did you mean ray?"),
        ({"address": "somewhere:1"}, "expected engine ray"),
        ({"bind": "0.0.0.0"}, "expected one address by which hosts reach"),
        ({"bind": "203.0.113.7"}, "give --bind an address of this machine"),
    ):
        with pytest.raises(ClusterError, match=said):
            Cluster(**options)


def test_without_ray(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentError, match=r"no package ray.*ziggurat\[cluster\]"):
        Cluster("ray")


def test_hosts_that_do_not_start():
    printed = []
    with pytest.raises(ClusterError, match=r"host-0 did not start.*no_such_module"):
        Cluster(preload=["no_such_module"], printed=lambda *pair: printed.append(pair)).__enter__()
    assert any("no_such_module" in line for _, line in printed)
