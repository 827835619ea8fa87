"""Reward functions that hang, die, raise or give nonsense cost a reward, and nothing else."""

import os
import time

import psutil
import pytest

from ziggurat.core.errors import ConfigError
from ziggurat.post.rl.rewards import RewardError, Rewards, Verdict
from ziggurat.post.rl.scoring import ReasoningGymScorer, RewardFunction, Verifier, check_signature

FUNCTIONS = """
import os, subprocess, sys, time

def odd(prompt, completion, row):
    print("what a function prints is no answer")
    if completion == "hang":
        subprocess.Popen(["sleep", "300"])
        time.sleep(300)
    if completion == "die":
        os._exit(3)
    if completion == "leave":
        sys.exit(1)
    if completion == "raise":
        raise RuntimeError("no")
    if completion == "nan":
        return float("nan")
    return len(completion) + row["bonus"]
"""


@pytest.fixture
def target(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    return f"{file}:odd"


def test_every_way_to_fail_is_a_verdict(target):
    texts = ["a", "hang", "raise", "bb", "die", "leave", "ccc", "nan", "dddd"]
    with Rewards(RewardFunction(target), timeout_s=1.0, on_failure=-2.0, processes=2) as rewards:
        asked = [("prompt", text, {"bonus": 0.5}) for text in texts]
        begun = time.monotonic()
        verdicts = rewards.judge(asked)
        assert time.monotonic() - begun < 60
        assert dict(zip(texts, verdicts)) == {
            "a": Verdict(1.5),
            "hang": Verdict(-2.0, "timeout"),
            "raise": Verdict(-2.0, "error"),
            "bb": Verdict(2.5),
            "die": Verdict(-2.0, "crash"),
            "leave": Verdict(-2.0, "error"),
            "ccc": Verdict(3.5),
            "nan": Verdict(-2.0, "error"),
            "dddd": Verdict(4.5),
        }
        assert rewards.judge(asked[:1]) == [Verdict(1.5)]  # and it continues
        assert rewards.judge([]) == []
    left = [p for p in psutil.Process(os.getpid()).children(recursive=True) if p.is_running()]
    assert not [p for p in left if "reward_process" in " ".join(p.cmdline())]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("x = 1", "odd", "no function odd"),
        ("import nowhere_to_be_found", "odd", "ModuleNotFoundError"),
        ("def odd(:", "odd", "SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_said_at_once(tmp_path, text, name, said):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Rewards(RewardFunction(f"{file}:{name}"), processes=1)


class Judge:
    def __call__(self, prompt, completion, row):
        return 1.0


class Promise:
    async def __call__(self, prompt, completion, row):
        return 1.0


async def coroutine(prompt, completion, row):
    return 1.0


def generator(prompt, completion, row):
    yield 1.0


@pytest.mark.parametrize(
    "function",
    [
        lambda prompt, completion, row: 1.0,
        lambda prompt, completion, row, extra=None: 1.0,
        lambda *parts: 1.0,
        Judge(),
        max,  # a built-in function without a signature
    ],
)
def test_functions_of_prompt_completion_and_row_are_taken(function):
    check_signature(function, "reward")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda prompt, completion: 1.0, r"a function of \(prompt, completion\)"),
        (lambda completions, **kwargs: [1.0], r"a function of \(completions, \*\*kwargs\)"),
        (lambda prompt, completion, *, row: 1.0, "row"),
        (lambda prompt, completion, row, extra: 1.0, "extra"),
        (coroutine, "coroutine"),
        (generator, "generator"),
        (Promise(), "coroutine"),
    ],
)
def test_functions_of_other_arguments_are_refused(function, said):
    with pytest.raises(ConfigError, match=said):
        check_signature(function, "reward f.py:f")


def test_a_wrong_signature_is_refused_when_the_processes_start(tmp_path):
    file = tmp_path / "two.py"
    file.write_text("def two(prompt, completion): return 1.0")
    with pytest.raises(ConfigError, match="expected one of three arguments"):
        Rewards(RewardFunction(f"{file}:two"), processes=1)


def test_failures_have_a_budget(target):
    """So many one after another, or all of a step, end the run with the last one's reason."""
    good, bad = ("p", "a", {"bonus": 0}), ("p", "raise", {"bonus": 0})
    with Rewards(RewardFunction(target), processes=1, max_failures=2) as rewards:
        assert [v.failure for v in rewards.judge([bad, good, bad])] == ["error", None, "error"]
        assert rewards.judge([bad, good])[0].failure == "error"  # the second one after another
        with pytest.raises(RewardError, match=r"3 failed one after another.*RuntimeError: no"):
            rewards.judge([good, bad, bad, bad, bad, good])
    with Rewards(RewardFunction(target), processes=1) as rewards:
        with pytest.raises(RewardError, match=r"all 2 of a step failed.*RuntimeError: no"):
            rewards.judge([bad, bad])
        assert rewards.judge([good]) == [Verdict(1.0)]


@pytest.mark.parametrize("value", ["None", "[1.0]", "'x'", "1e30", "float('inf')", "1j"])
def test_what_is_no_reward_is_a_failure(value):
    from ziggurat.post.rl.scoring import checked

    with pytest.raises((TypeError, ValueError)):
        checked(eval(value))


def test_verifiers_take_the_last_answer():
    score = Verifier("number", r"<a>(.*?)</a>").load()
    assert score("", "<a>1</a> no, <a> 2,000.0 </a>", {"answer": "2000"}) == 1.0
    assert score("", "2000", {"answer": "2000"}) == 0.0
    with pytest.raises(ConfigError, match="did you mean exact"):
        Verifier("exakt").load()


def test_reasoning_gym_scores_the_problem_of_the_row():
    score = ReasoningGymScorer("chain_sum", (("max_terms", 2),)).load()
    from ziggurat.post.rl.scoring import procedural

    answer = procedural("chain_sum", {"max_terms": 2}, 7)[3]["answer"]
    assert score("", f" {answer}\n", {"seed": 7, "index": 3}) == 1.0
    assert score("", "none", {"seed": 7, "index": 3}) < 1.0
