"""The journal survives kills, and the account of a run's time adds up."""

import json

import pytest

from ziggurat.profile.goodput import goodput
from ziggurat.profile.journal import Journal, LedgerEntry, read_journal
from ziggurat.profile.timers import StepTimer


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def session(path, clock, steps, *, first=0, data_s=0.0, killed=False):
    """A session that launches for 2 s, compiles for 3 s and steps for 1 s each."""
    timer = StepTimer(clock=clock)
    journal = Journal(path, timer, launched_s=2.0, clock=clock)
    with timer.phase("compile"):
        clock.now += 3.0
    journal.note(first, now=True)
    for done in range(first + 1, first + steps + 1):
        with timer.phase("data"):
            clock.now += data_s
        with timer.phase("step"):
            clock.now += 1.0
        journal.note(done)
    if not killed:
        journal.close(first + steps)


def test_one_session(tmp_path):
    clock = Clock()
    session(tmp_path / "ledger.jsonl", clock, 10, data_s=0.5)
    account = goodput(read_journal(tmp_path / "ledger.jsonl"))
    assert account.wall_s == pytest.approx(2 + 3 + 10 * 1.5)
    assert account.seconds["step"] == pytest.approx(10)
    assert account.seconds["data"] == pytest.approx(5)
    assert account.seconds["launch"] == pytest.approx(2)
    assert (account.steps, account.replayed_steps, account.sessions) == (10, 0, 1)
    assert account.share == pytest.approx(0.5)


def test_two_kills_add_up(tmp_path):
    """Steps 0-7, killed; from 4 on to 9, killed; from 8 on to 12. Everything between is counted."""
    path, clock = tmp_path / "ledger.jsonl", Clock()
    began = clock.now - 2.0  # the first process launched 2 s before its timer
    session(path, clock, 7, killed=True)
    clock.now += 6.0 + 2.0  # nobody ran for 6 s; then the next process launched
    session(path, clock, 5, first=4, killed=True)
    with open(path, "a") as file:
        file.write('{"session": "torn')
    with open(path, "a") as file:
        file.write("\n")
    clock.now += 1.0 + 2.0
    session(path, clock, 4, first=8)
    account = goodput(read_journal(path))
    assert account.wall_s == pytest.approx(clock.now - began)
    assert sum(account.seconds.values()) == pytest.approx(account.wall_s)
    assert account.replayed_steps == 3 + 1
    assert account.seconds["replay"] == pytest.approx(4.0)
    assert account.seconds["step"] == pytest.approx(12.0)
    assert account.seconds["down"] == pytest.approx(7.0)
    assert account.sessions == 3


def test_entries_come_at_most_once_a_second(tmp_path):
    clock, path = Clock(), tmp_path / "ledger.jsonl"
    timer = StepTimer(clock=clock)
    journal = Journal(path, timer, every_s=1.0, launched_s=0.0, clock=clock)
    for step in range(100):
        clock.now += 0.1
        journal.note(step)
    journal.close(100)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert 10 <= len(lines) <= 12
    for line in lines:
        spent = sum(line["ledger_s"].values())
        assert line["began_unix_s"] + spent == pytest.approx(line["time_unix_s"])


def test_the_process_counts_from_its_start(tmp_path):
    journal = Journal(tmp_path / "ledger.jsonl", StepTimer())
    journal.close(0)
    ((entry,),) = read_journal(tmp_path / "ledger.jsonl")
    assert entry.ledger_s["launch"] > 0.1, "this process took longer to import pytest"


def test_a_resumed_step_between_two_entries_is_interpolated():
    first = [
        LedgerEntry("a", 0.0, 0.0, 0, {}),
        LedgerEntry("a", 0.0, 10.0, 10, {"step": 10.0}),
    ]
    second = [LedgerEntry("b", 10.0, 10.0, 5, {}), LedgerEntry("b", 10.0, 11.0, 6, {"step": 1.0})]
    assert goodput([first, second]).seconds["replay"] == pytest.approx(5.0)
    assert goodput([]).wall_s == 0.0
