"""Learning-rate schedules against values worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.optim import (
    Constant,
    Cosine,
    InverseSqrt,
    LinearDecay,
    ScheduleConfig,
    WarmupStableDecay,
    build_schedule,
)

CASES = [
    (Constant(), {0: 1, 5: 1, 99: 1, 500: 1}),
    (Constant(warmup_steps=4), {0: 0.25, 1: 0.5, 3: 1, 4: 1, 99: 1}),
    (LinearDecay(warmup_steps=20), {0: 0.05, 19: 1, 20: 1, 40: 0.75, 60: 0.5, 99: 0.0125, 100: 0}),
    (LinearDecay(final_fraction=0.1), {0: 1, 50: 0.55, 100: 0.1, 1000: 0.1}),
    (Cosine(), {0: 1, 25: 0.5 + math.sqrt(0.125), 50: 0.5, 75: 0.5 - math.sqrt(0.125), 100: 0}),
    (Cosine(warmup_steps=20, final_fraction=0.2), {9: 0.5, 20: 1, 60: 0.6, 100: 0.2, 101: 0.2}),
    (WarmupStableDecay(warmup_steps=10), {4: 0.5, 10: 1, 90: 1, 95: 0.5, 99: 0.1, 100: 0}),
    (
        WarmupStableDecay(decay_fraction=0.36, decay_shape="sqrt", final_fraction=0.1),
        {0: 1, 64: 1, 65: 0.1 + 0.9 * (1 - 1 / 6), 73: 0.55, 80: 0.4, 100: 0.1},
    ),
    (
        WarmupStableDecay(decay_fraction=0.4, decay_shape="cosine"),
        {60: 1, 70: 0.5 + math.sqrt(0.125), 80: 0.5, 100: 0},
    ),
    (WarmupStableDecay(decay_fraction=0.0), {0: 1, 99: 1}),
    (WarmupStableDecay(decay_fraction=1.0), {0: 1, 50: 0.5}),
    (InverseSqrt(warmup_steps=4), {0: 0.25, 3: 1, 15: 0.5, 35: 1 / 3, 99: 0.2, 399: 0.1}),
    (InverseSqrt(warmup_steps=4, final_fraction=0.25), {15: 0.5, 63: 0.25, 99: 0.25}),
]


@pytest.mark.parametrize(("node", "values"), CASES, ids=lambda x: getattr(x, "kind", ""))
def test_values(node, values):
    schedule = build_schedule(node, 100, 2.0)
    steps = list(values)
    expected = 2.0 * np.array(list(values.values()))
    np.testing.assert_allclose([schedule(s) for s in steps], expected, rtol=1e-6, atol=1e-7)
    traced = jax.jit(jax.vmap(schedule))(jnp.array(steps))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("node", "values"), CASES, ids=lambda x: getattr(x, "kind", ""))
def test_continuous_and_never_zero_before_the_end(node, values):
    rates = np.asarray(jax.vmap(build_schedule(node, 1000))(jnp.arange(1000)))
    assert (rates > 0).all()
    assert rates.max() == pytest.approx(1.0, abs=1e-6)
    assert (np.diff(rates[node.warmup_steps :]) <= 1e-7).all(), "falls after the warm-up"


def test_full_run_of_warmup():
    schedule = build_schedule(LinearDecay(warmup_steps=10), 10)
    assert schedule(9) == 1


@pytest.mark.parametrize(
    ("node", "total", "part"),
    [
        (Cosine(warmup_steps=11), 10, "found 11 warm-up steps; expected at most the schedule's 10"),
        (
            WarmupStableDecay(warmup_steps=6, decay_fraction=0.5),
            10,
            "found 6 warm-up \\+ 5 decay steps",
        ),
        (Constant(), 0, "total steps: found 0"),
    ],
)
def test_runs_too_short(node, total, part):
    with pytest.raises(ConfigError, match=part):
        build_schedule(node, total)


@config.node
class Run:
    schedule: ScheduleConfig


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('kind="cosin"', "did you mean cosine"),
        ('kind="cosine"\nwarmup_steps=-1', "schedule.warmup_steps: found -1"),
        ('kind="cosine"\nfinal_fraction=1.5', "schedule.final_fraction: found 1.5"),
        ('kind="constant"\nfinal_fraction=0.5', "schedule.final_fraction: unknown key"),
        ('kind="wsd"\ndecay_fraction=-0.1', "schedule.decay_fraction: found -0.1"),
        ('kind="wsd"\ndecay_shape="square"', "schedule.decay_shape: found 'square'"),
        ('kind="inverse_sqrt"', "schedule.warmup_steps: found 0, expected 1 or more"),
    ],
)
def test_errors_in_a_run_file(text, part):
    with pytest.raises(ConfigError, match=part):
        config.parse(Run, f"[schedule]\n{text}")


@pytest.mark.parametrize(("node", "values"), CASES, ids=lambda x: getattr(x, "kind", ""))
def test_toml_round_trip(node, values):
    assert config.parse(Run, config.to_toml(Run(schedule=node))).value.schedule == node
