"""The progress line on a clock the test turns: plain lines, a live line, notices, time left."""

import io
import re

import jax.numpy as jnp
import pytest
from rich.console import Console

from ziggurat.train.progress import TrainProgress, duration, short


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def plain(clock, total=100, **options):
    console = Console(file=io.StringIO(), width=40)  # narrower than a line: nothing may wrap
    return TrainProgress(total, name="tiny", console=console, clock=clock, **options), console


def run(progress, clock, steps, seconds=2.0, **metrics):
    for step in steps:
        clock.now += seconds
        progress.write(step, metrics)


def lines(console):
    return console.file.getvalue().splitlines()


def test_every_fact_on_one_plain_line(clock):
    progress, console = plain(clock, every_steps=1)
    with progress:
        run(progress, clock, [0], loss=jnp.float32(2.5), learning_rate=3e-4, grad_norm=0.8125,
            tokens_per_s=41_234, mfu=0.4312, other=1.0)  # fmt: skip
    assert lines(console) == [
        "tiny  1/100  1%  loss 2.5  lr 3.0e-04  grad 0.812  41.2k tok/s  MFU 43.1%  ETA 0:03:18"
    ]


def test_lines_by_time_by_steps_and_at_the_end(clock):
    progress, console = plain(clock, every_s=10)
    with progress:
        run(progress, clock, range(12), seconds=2)
    assert [line.split()[1] for line in lines(console)] == ["5/100", "10/100", "12/100"]
    progress, console = plain(clock, total=7, every_s=1e9, every_steps=3)
    with progress:
        run(progress, clock, range(7))
    assert [line.split()[1] for line in lines(console)] == ["3/7", "6/7", "7/7"]
    assert "ETA" not in lines(console)[-1]


def test_values_last_until_the_next(clock):
    progress, console = plain(clock, every_steps=2, total=3)
    with progress:
        progress.write(0, {"loss": 3.0, "eval_loss": 4.0})
        progress.write(1, {"loss": float("nan")})
    assert lines(console) == ["tiny  2/3  66%  loss nan  eval 4"]


def test_time_left_follows_the_recent_pace(clock):
    progress, _ = plain(clock, total=1000)
    assert progress.eta_s() is None
    run(progress, clock, range(100), seconds=9.0)
    assert progress.eta_s() == pytest.approx(900 * 9)
    run(progress, clock, range(100, 200), seconds=1.0)
    assert progress.eta_s() == pytest.approx(800 * 1)


def test_resumed_run_counts_only_its_own_steps(clock):
    progress, console = plain(clock, total=100, start_step=90, every_steps=5)
    progress.resumed(90, "runs/[tiny]/step_90")
    run(progress, clock, range(90, 95), seconds=3.0)
    assert lines(console) == [
        "tiny  resumed at step 90 from runs/[tiny]/step_90",
        "tiny  95/100  95%  ETA 0:00:15",
    ]


def test_saving_says_how_long_or_that_it_failed(clock):
    progress, console = plain(clock, every_s=1e9)
    with progress.saving(10, "ckpt/step_10"):
        assert progress.line().endswith("saving step 10")
        clock.now += 1.25
    assert "saving" not in progress.line()
    with pytest.raises(OSError, match="full"), progress.saving(20, "ckpt/step_20"):
        raise OSError("full")
    assert lines(console) == [
        "tiny  saved step 10 to ckpt/step_10 in 1.2 s",
        "tiny  checkpoint of step 20 failed: ckpt/step_20",
    ]


@pytest.mark.parametrize("width", [200, 40])
def test_live_line_on_a_terminal(clock, width):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    progress = TrainProgress(4, name="ti[ny]", console=console, clock=clock)
    with progress:
        run(progress, clock, range(2), loss=2.25, tokens_per_s=1e6)
        progress.resumed(2, "here")
        with progress.saving(2, "there"):
            pass
        run(progress, clock, range(2, 4), loss=1.75)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "resumed at step 2 from here" in text
    assert "saved step 2 to there" in text
    last = text.replace("\r", "\n").strip().splitlines()[-1]
    assert "4/4" in last
    assert len(last.rstrip()) <= width
    if width == 200:
        assert last.startswith("ti[ny]")
        assert "loss 1.75  1M tok/s" in last


def test_numbers():
    assert [short(v) for v in (0, 12, 1234, 999_950, 5.4e9, 2e15, -1500, float("nan"))] == [
        "0", "12", "1.23k", "1M", "5.4G", "2000T", "-1.5k", "nan",
    ]  # fmt: skip
    assert duration(59.6) == "0:01:00"
    with pytest.raises(ValueError, match="every_steps"):
        TrainProgress(1, every_steps=0)
