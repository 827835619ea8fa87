"""Processes agree by the key-value store; real ones, since one process proves nothing."""

import subprocess
import sys

import pytest
from tests.free_port import free_port

from ziggurat.core.errors import EnvironmentError
from ziggurat.mesh import Processes, join

WORKER = """
import sys, threading
from ziggurat.core.errors import DataError, ZigguratError
from ziggurat.mesh import Processes, join
join(f"localhost:{sys.argv[1]}", 3, int(sys.argv[2]))
all = Processes(patience_s=60)
assert (all.index, all.count, all.first) == (int(sys.argv[2]), 3, sys.argv[2] == "0")
for turn in range(3):
    assert all.gather("rows", {"from": all.index, "turn": turn}) == [
        {"from": n, "turn": turn} for n in range(3)
    ]
assert all.agree("choice", all.index * 10 + 7) == 7
found = []
other = threading.Thread(target=lambda: found.append(all.gather("background", all.index)))
other.start()
assert all.gather("foreground", -all.index) == [0, -1, -2]
other.join()
assert found == [[0, 1, 2]]
assert all.once("write", lambda: all.index) == 0
try:
    all.once("refuse", lambda: (_ for _ in ()).throw(DataError("corpus", found="nothing")))
except ZigguratError as error:
    assert "corpus: found nothing" in str(error), error
else:
    raise SystemExit("no refusal")
all.barrier("end")
if all.index != 2:
    from ziggurat.core.errors import EnvironmentError
    try:
        Processes(patience_s=0.5).gather("alone", 1)
    except EnvironmentError as error:
        assert f"process {all.index} of 3" in str(error) and "alone" in str(error), error
    else:
        raise SystemExit("the third answered")
all.barrier("after")
print("done", flush=True)
"""


@pytest.mark.slow
def test_three_processes():
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, port, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
        )
        for index in range(3)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=120)
        assert worker.returncode == 0, output
        assert "done" in output


def test_one_process_answers_itself():
    alone = Processes()
    assert alone.first
    assert alone.gather("x", {"a": (1, 2)}) == [{"a": [1, 2]}]
    assert alone.agree("x", 3) == 3
    alone.barrier("x")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("host:1", None, 0), "no --processes"),
        (("host:1", None, None), "no --processes and no --process"),
        (("host", 2, 0), "no port"),
        (("host:1", 2, 2), "found 2; expected 0 to 1"),
    ],
)
def test_bad_arguments(given, said):
    with pytest.raises(EnvironmentError, match=said):
        join(*given)
