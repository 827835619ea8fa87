"""A traced step, taken apart by named scope."""

import json
import os
import subprocess
import sys

import pytest

from ziggurat.profile import sampling
from ziggurat.profile.sampling import MODULES, ProfileConfig, TraceSampler
from ziggurat.profile.timers import StepTimer
from ziggurat.profile.trace import by_module, module_of, summarise


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("jit(step)/jvp(attention)/query/dot_general", "attention/query"),
        ("jit(step)/transpose(jvp(attention))/dot_general", "attention"),
        ("jit(step)/while/body/closed_call/mlp/mul", "mlp"),
        ("jit(step)/attention/bkns,bksz->bknz/dot_general", "attention"),
        ("jit(step)/jit(_where)/select_n", "other"),
        ("add", "other"),
    ],
)
def test_module_of(path, module):
    assert module_of(path) == module


PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from ziggurat.profile.sampling import ProfileConfig, TraceSampler
from ziggurat.profile.timers import StepTimer

def function(x):
    with jax.named_scope("first"):
        x = jnp.sin(x @ x)
    with jax.named_scope("second"):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=3)[0]

x = jnp.ones((256, 256))
step = jax.jit(function).lower(x).compile()
now, place = [0.0], Path(sys.argv[1])
settings = ProfileConfig(trace_after_s=5.0, trace_every_s=50.0)
sampler = TraceSampler(settings, place, StepTimer(clock=lambda: now[0]), step.as_text)
for now[0] in (0.0, 6.0, 7.0):
    with sampler.step():
        jax.block_until_ready(step(x))
    print(len(list(place.rglob("*.xplane.pb"))))
"""


def test_a_step_is_traced_when_it_is_time(tmp_path):
    """In a process of its own: another test may have loaded libtpu in this one."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["0", "1", "1"], done.stderr
    operations = summarise(tmp_path, json.loads((tmp_path / MODULES).read_text()))
    assert {"first", "second"} <= by_module(operations).keys()
    assert all(operation.seconds >= 0 and operation.count >= 1 for operation in operations)
    inside = [o for o in operations if o.module == "second" and o.count >= 3]
    assert inside, "a loop's body runs three times"
    assert summarise(tmp_path / "nothing", {}) == []


def test_where_no_trace_can_be_taken_training_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sampling, "can_trace", lambda: False)
    settings = ProfileConfig(trace_after_s=0.0)
    sampler = TraceSampler(settings, tmp_path / "traces", StepTimer(), lambda: "")
    for _ in range(3):
        with sampler.step():
            pass
    assert [record.message for record in caplog.records] == [
        "no trace of a step can be taken: libtpu is loaded, and there is no TPU"
    ]
    assert not (tmp_path / "traces").exists()


@pytest.mark.tpu_compile
def test_libtpu_loaded_for_its_compiler_is_noticed():
    program = """
from jax.experimental import topologies
from ziggurat.profile.trace import can_trace
before = can_trace()
topologies.get_topology_desc("v5e:2x2", "tpu")
print(before, can_trace())
"""
    environment = os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stderr[-2000:]
