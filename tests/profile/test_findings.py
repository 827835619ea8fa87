"""Each made-up trouble is named, and a healthy run is left in peace."""

import numpy as np
import pytest

from ziggurat.profile.findings import findings
from ziggurat.profile.goodput import Goodput

HEALTHY = {"step": 95.0, "compile": 3.0, "data": 1.0, "checkpoint": 1.0}


def account(**seconds):
    seconds = {**HEALTHY, **seconds}
    return Goodput(sum(seconds.values()), seconds, 1, 300, 0)


def steps(count=300, **given):
    """Rows of ``count`` steps; a value may be a function of the step."""
    base = {"step_time_s": 0.1, "data_time_s": 0.001, "host_rss_bytes": 1e9, "skipped_steps": 0.0}
    return [
        {"step": i} | {k: v(i) if callable(v) else v for k, v in (base | given).items()}
        for i in range(count)
    ]


def titles(account, rows):
    return [finding.title for finding in findings(account, rows)]


def test_a_healthy_run_has_no_findings():
    assert titles(account(), steps()) == []
    growing_at_first = steps(host_rss_bytes=lambda i: 1e9 * min(1 + i / 50, 2))
    assert titles(account(), growing_at_first) == []
    assert titles(account(), []) == []
    assert titles(Goodput(0.0, {}, 0, 0, 0), []) == []


@pytest.mark.parametrize(
    ("seconds", "word"),
    [
        ({"data": 30.0}, "wait for data"),
        ({"checkpoint": 10.0}, "saving holds"),
        ({"evaluation": 40.0}, "evaluation"),
        ({"compile": 40.0}, "compiling"),
        ({"replay": 5.0}, "done again"),
        ({"down": 20.0}, "no process"),
    ],
)
def test_a_loss_is_named(seconds, word):
    (title,) = titles(account(**seconds), steps())
    assert word in title


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (steps(step_time_s=lambda i: 1.0 if i % 20 == 7 else 0.1), "more than twice"),
        (steps(step_time_s=lambda i: 0.1 + i / 3000), "grew slower"),
        (steps(host_rss_bytes=lambda i: 1e9 + i * 2e6), "grows by 1.907 MiB a step"),
        (steps(skipped_steps=lambda i: float(i > 5)), "1 steps were skipped"),
    ],
)
def test_trouble_in_the_steps_is_named(rows, word):
    (title,) = titles(account(), rows)
    assert word in title


def test_slow_steps_that_waited_for_data_say_so():
    rows = steps(
        step_time_s=lambda i: 1.0 if i % 20 == 7 else 0.1,
        data_time_s=lambda i: 0.9 if i % 20 == 7 else 0.001,
    )
    (finding,) = findings(account(), rows)
    assert finding.advice.endswith("they waited for data")
    assert finding.cost_s == pytest.approx(15 * 0.9)


def test_the_costliest_comes_first():
    found = findings(account(data=30.0, checkpoint=60.0), steps())
    assert [finding.cost_s for finding in found] == [60.0, 30.0]


CLEAN = {
    "flat": lambda rng, n: np.zeros(n),
    "noise": lambda rng, n: rng.normal(0, 0.02, n),
    "spikes": lambda rng, n: 0.3 * (rng.random(n) < 0.05),
    "wandering": lambda rng, n: np.cumsum(rng.normal(0, 0.002, n)),
    "jumps": lambda rng, n: np.cumsum(0.1 * (rng.random(n) < 3 / n)),
    "one jump": lambda rng, n: 0.5 * (np.arange(n) > rng.integers(0, n)),
    "caches fill": lambda rng, n: 1 - np.exp(-np.arange(n) / (n / 4)) + rng.normal(0, 0.005, n),
    "logarithm": lambda rng, n: 0.2 * np.log1p(np.arange(n)) + rng.normal(0, 0.002, n),
    "saw": lambda rng, n: 0.2 * (np.arange(n) % 60) / 60,
}
"""How the memory of a run without a leak may go, as a share of a gigabyte."""


def leaks(memory):
    rows = [
        {"step": i, "step_time_s": 0.1, "host_rss_bytes": float(1e9 * (1 + value))}
        for i, value in enumerate(memory)
    ]
    return [t for t in titles(account(), rows) if "memory grows" in t]


@pytest.mark.parametrize("length", [70, 150, 300, 1000])
@pytest.mark.parametrize("kind", CLEAN)
def test_a_run_without_a_leak_has_none(kind, length):
    """A hundred runs of each kind; chance may find one leak in a thousand."""
    rng = np.random.default_rng(length)
    found = sum(bool(leaks(CLEAN[kind](rng, length))) for _ in range(100))
    assert found <= 1


@pytest.mark.parametrize(
    ("kind", "length"),
    [("flat", 300), ("noise", 300), ("spikes", 300), ("saw", 1000), ("caches fill", 1000)],
)
def test_a_leak_is_found_below_whatever_else_memory_does(kind, length):
    rng = np.random.default_rng(length)
    bytes_a_step = 2e-3
    for _ in range(20):
        clean = CLEAN[kind](rng, length)
        (title,) = leaks(clean + bytes_a_step * np.arange(length))
        assert float(title.split()[4]) == pytest.approx(2e6 / 2**20, rel=0.6)


def test_a_short_run_says_nothing():
    assert leaks(2e-3 * np.arange(260)) == []
    assert leaks(2e-3 * np.arange(270)) != []
