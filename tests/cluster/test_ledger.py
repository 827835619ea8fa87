"""The controller's account of time: complete, whatever happens in which order."""

import random

import pytest

from ziggurat.cluster.ledger import Ledger
from ziggurat.profile.goodput import goodput
from ziggurat.profile.journal import read_journal


def test_it_sums_to_the_wall_clock(tmp_path):
    chance, now = random.Random(2), [1000.0]
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: now[0], every_s=0.0)
    step, checkpoint = 0, 0

    def pass_time():
        seconds = chance.uniform(0.01, 1.0)
        now[0] += seconds
        return seconds

    pass_time()
    ledger.charge("init")
    for _ in range(30):
        told = {"start": pass_time()}
        step = checkpoint
        for _step in range(chance.randint(0, 5)):
            pass_time()  # which the program does not account for
            ledger.report(step, told)
            told["step"] = told.get("step", 0.0) + pass_time()
            step += 1
            checkpoint += chance.randint(0, step - checkpoint)
        pass_time()
        ledger.ended(chance.choice(["detect", "finish"]))
        pass_time()
        ledger.charge("reform")
        account = ledger.account()
        assert account.wall_s == pytest.approx(now[0] - 1000.0)
        assert sum(account.seconds.values()) == pytest.approx(account.wall_s)
        assert all(seconds >= -1e-9 for seconds in account.seconds.values())
    ledger.close()
    assert account.replayed_steps > 0
    assert account.seconds["replay"] > 0
    written = goodput(read_journal(tmp_path / "ledger.jsonl"))
    assert written.wall_s == pytest.approx(now[0] - 1000.0)
    assert written.seconds["replay"] == pytest.approx(account.seconds["replay"])


def test_two_controllers_share_a_file(tmp_path):
    now = [0.0]
    for _ in range(2):
        ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: now[0])
        now[0] += 2.0
        ledger.charge("init")
        now[0] += 1.0
        ledger.report(1, {"step": 1.0})
        ledger.ended("finish")
        ledger.close()
        now[0] += 5.0  # nobody is at work
    account = goodput(read_journal(tmp_path / "ledger.jsonl"))
    assert dict(account.seconds) | {"down": 5.0, "init": 4.0, "step": 2.0} == account.seconds
    assert account.wall_s == 11.0
