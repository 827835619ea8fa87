"""Step timer on a clock the test turns: exact figures, no real time."""

import pytest

from ziggurat.profile.timers import UNACCOUNTED, StepTimer


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def run(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timer(clock):
    return StepTimer(window=3, clock=clock)


def one_step(timer, clock, step, data=1.0, compute=2.0, tokens=30):
    with timer.step(step) as record:
        record.tokens = tokens
        with timer.phase("data"):
            clock.run(data)
        with timer.phase("compute"):
            clock.run(compute)
        clock.run(0.5)
    return record


def test_step_records(timer, clock):
    record = one_step(timer, clock, 7)
    assert record.step == 7
    assert record.wall_s == 3.5
    assert record.phases_s == {"data": 1.0, "compute": 2.0}
    assert record.tokens_per_s == pytest.approx(30 / 3.5)


def test_medians_over_the_window_only(timer, clock):
    one_step(timer, clock, 0, compute=1000.0)  # compilation: falls out of the window of 3
    for step, compute in enumerate((2.0, 9.0, 3.0), 1):
        one_step(timer, clock, step, compute=compute)
    assert [record.step for record in timer.records] == [1, 2, 3]
    assert timer.median_step_s() == 4.5
    assert timer.median_phase_s("compute") == 3.0
    assert timer.median_phase_s("absent") == 0.0
    assert timer.median_tokens_per_s() == pytest.approx(30 / 4.5)
    assert timer.mean_tokens_per_s() == pytest.approx(90 / (3.5 + 10.5 + 4.5))


def test_mean_is_right_when_only_some_steps_wait(timer, clock):
    for step, compute in enumerate((0.0, 0.0, 30.0)):
        one_step(timer, clock, step, data=0.0, compute=compute, tokens=100)
    assert timer.mean_tokens_per_s() == pytest.approx(300 / 31.5)


def test_ledger_sums_to_wall_time_with_nesting_and_gaps(timer, clock):
    clock.run(4)
    with timer.phase("restore"):
        clock.run(2)
    one_step(timer, clock, 0)
    with timer.phase("evaluation"):
        clock.run(3)
        with timer.phase("compute"):
            clock.run(5)
        clock.run(1)
    clock.run(0.25)
    ledger = timer.ledger()
    assert ledger == {
        "restore": 2.0, "data": 1.0, "compute": 7.0, "evaluation": 4.0, UNACCOUNTED: 4.75,
    }  # fmt: skip
    assert list(ledger)[-1] == UNACCOUNTED
    assert sum(ledger.values()) == timer.wall_s() == clock.now - 100


def test_ledger_inside_an_open_phase(timer, clock):
    with timer.phase("data"):
        clock.run(2)
        assert timer.ledger() == {"data": 2.0, UNACCOUNTED: 0.0}
        clock.run(1)
    assert timer.ledger()["data"] == 3.0


def test_phase_spanning_steps_splits(timer, clock):
    with timer.phase("train"):
        clock.run(5)
        with timer.step(0) as record:
            clock.run(2)
    assert record.phases_s == {"train": 2.0}
    assert timer.ledger()["train"] == 7.0


def test_an_error_closes_phases_and_drops_the_step(timer, clock):
    def fail():
        clock.run(2)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError), timer.step(0), timer.phase("data"):
        fail()
    assert timer.records == ()
    assert timer.ledger() == {"data": 2.0, UNACCOUNTED: 0.0}
    assert one_step(timer, clock, 0).wall_s == 3.5


def test_empty_and_refused(timer):
    assert timer.median_step_s() is None
    assert timer.mean_tokens_per_s() is None
    with pytest.raises(ValueError, match="taken by the ledger"), timer.phase(UNACCOUNTED):
        pass
    with pytest.raises(ValueError, match="at least 1"):
        StepTimer(window=0)
