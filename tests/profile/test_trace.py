"""A traced step, taken apart by named scope."""

import json

import jax
import jax.numpy as jnp
import pytest

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


def test_a_step_is_traced_when_it_is_time(tmp_path):
    def function(x):
        with jax.named_scope("first"):
            x = jnp.sin(x @ x)
        with jax.named_scope("second"):
            return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=3)[0]

    x = jnp.ones((256, 256))
    step = jax.jit(function).lower(x).compile()
    now = [0.0]
    settings = ProfileConfig(trace_after_s=5.0, trace_every_s=50.0)
    timer = StepTimer(clock=lambda: now[0])
    sampler = TraceSampler(settings, tmp_path / "traces", timer, step.as_text)

    def run():
        with sampler.step():
            jax.block_until_ready(step(x))
        return len(list(tmp_path.rglob("*.xplane.pb")))

    assert run() == 0
    now[0] = 6.0
    assert run() == 1
    assert run() == 1, "the next is due 50 s later"
    operations = summarise(
        tmp_path / "traces", json.loads((tmp_path / "traces" / MODULES).read_text())
    )
    modules = by_module(operations)
    assert {"first", "second"} <= modules.keys()
    assert all(operation.seconds >= 0 and operation.count >= 1 for operation in operations)
    inside = [o for o in operations if o.module == "second" and o.count >= 3]
    assert inside, "a loop's body runs three times"
    assert summarise(tmp_path / "nothing", {}) == []
