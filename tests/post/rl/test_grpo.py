"""The objective in the training loop: it learns, resumes bit for bit, measures, and refuses.

All runs, and the sampler of the other tests here, have the same shapes, and so the same programs.
"""

import jax
import numpy as np
import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, TrainError
from ziggurat.post.rl.arena import Arena
from ziggurat.post.rl.collecting import Collector
from ziggurat.train.config import RunConfig
from ziggurat.train.experiment import prepare
from ziggurat.train.loop import train
from ziggurat.train.metrics import read_metrics

RUN = """
name = "tiny"

[model]
kind = "llama"
vocab_size = 257
d_model = 32
n_layers = 2
n_heads = 2
n_kv_heads = 1
d_ff = 64

[tokenizer]
kind = "bytes"

[data]
kind = "problems"
batch_size = 16
sequence_length = 48
task = { kind = "prompts", path = "prompts.jsonl", reward = "reward.py:plain", held_out = 4 }

[objective]
kind = "grpo"
group = 4
kl_coef = 0.01
updates = 2
reward = { success = 0.9, processes = 1 }
sampling = { max_tokens = 6, max_running = 4 }

[optimizer]
kind = "adamw"
lr = 2e-2
schedule = { kind = "constant" }

[train]
steps = 6

[checkpoint]
every = 2
asynchronous = false

[evaluation]
batches = 1

[report]
tensorboard = false
"""
REWARD = '''
def plain(prompt, completion, row):
    """Share of the completion's characters that are ASCII; at first about a half are."""
    return sum(c.isascii() for c in completion) / max(len(completion), 1)

def two(prompt, completion):
    return 1.0
'''
MEASURED = ("reward", "loss", "grad_norm", "sampler_gap_mean", "entropy")


@pytest.fixture(scope="module", autouse=True)
def one_device_and_files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("grpo")
    (directory / "reward.py").write_text(REWARD)
    lines = [f'{{"prompt": "say {word}", "n": 1}}' for word in "abcdefghijkl"]
    (directory / "prompts.jsonl").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        patch.chdir(directory)
        yield


def resolved(*overrides):
    return config.parse(RunConfig, RUN, overrides, source="tiny.toml")


def run(*overrides):
    return train(resolved(*overrides))


@pytest.fixture(scope="module")
def whole():
    """An undisturbed run; two steps learn from each rollout."""
    return run("name=whole", "train.steps=16")


def rows_of(outcome):
    return [row for row in read_metrics(outcome.directory.metrics) if "loss" in row]


@pytest.mark.slow
def test_reward_rises_and_everything_is_recorded(whole):
    rows = rows_of(whole)
    fresh = rows[::2]
    rewards = [row["reward"] for row in fresh]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.1
    first, second, last = rows[0], rows[1], rows[-1]
    assert first["sampler_gap_mean"] < 1e-5
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert last["kl"] > 1e-4
    assert first["ratio"] == pytest.approx(1, abs=1e-5)
    assert second["ratio"] != pytest.approx(1, abs=1e-4)  # it learns off policy
    assert (first["rollout_age_steps"], second["rollout_age_steps"]) == (0, 1)
    assert first["clip_fraction"] == 0
    assert 0 < first["entropy"] < np.log(257)
    assert 1 <= first["completion_tokens"] <= 6
    assert [row["weights_version"] for row in fresh] == list(range(0, 16, 2))
    assert first["generated_tokens_per_s"] > 0
    assert "rollout" in whole.timer.records[0].phases_s
    final = read_metrics(whole.directory.metrics)[-2:]
    (found,) = [row for row in final if "eval_pass_at_1" in row]
    assert found["eval_pass_at_1_low"] <= found["eval_pass_at_1"] <= found["eval_pass_at_1_high"]
    assert found["eval_problems"] == 4


@pytest.mark.slow
def test_a_killed_run_makes_the_same_rollouts_again(whole, monkeypatch):
    play, calls = Arena.play, []

    def dies(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return play(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Arena, "play", dies)
        with pytest.raises(KeyboardInterrupt):
            run("name=broken", "train.steps=6")
    rows = rows_of(run("name=broken", "train.steps=6"))
    assert [row["step"] for row in rows] == list(range(6))
    for row, undisturbed in zip(rows, rows_of(whole)):
        for name in MEASURED:
            assert row.get(name) == undisturbed.get(name), (row["step"], name)


@pytest.mark.slow
def test_rollouts_are_kept_and_a_sampler_that_is_not_the_policy_is_found(monkeypatch):
    experiment = prepare(resolved("name=parts").value)
    params, rollout, data = experiment.initial().params, experiment.parts.rollout, experiment.data
    assert rollout is not None
    rows, _ = rollout(params, data.batch(2), 2)
    restarted = prepare(resolved("name=parts").value).parts.rollout
    assert restarted is not None
    again, figures = restarted(params, data.batch(3), 3)
    assert figures == {"rollout_age_steps": 1.0}
    assert all((again[name] == rows[name]).all() for name in rows)
    with pytest.raises(TrainError, match=r"rollout .*step_00000004"):
        restarted(params, data.batch(5), 5)

    play = Arena.play

    def other(self, params, *rest):
        return play(self, jax.tree.map(lambda leaf: leaf * 1.01, params), *rest)

    monkeypatch.setattr(Arena, "play", other)
    with pytest.raises(TrainError, match="gap_limit"):
        rollout(params, data.batch(4), 4)


def test_rloo_takes_the_divergence_off_the_reward(monkeypatch):
    """A policy that has left its start pays for it, in the reward and not in the loss."""
    settings = ("objective.ratio='product'", "objective.baseline='leave_one_out'")
    settings += ("objective.scale='none'", "objective.kl_in='reward'", "objective.kl_coef=0.5")
    made = prepare(resolved("name=rloo", *settings).value)
    rollout, start = made.parts.rollout, made.initial().params
    assert isinstance(rollout, Collector)
    assert "reference_log_probs" not in made.parts.program.batch
    moved = jax.tree.map(lambda leaf: leaf * 1.05, start)
    play, played = Arena.play, []
    monkeypatch.setattr(Arena, "play", lambda *args: played.append(play(*args)) or played[-1])
    rows, figures = rollout(moved, made.data.batch(0), 0)
    reference, _ = rollout._scored(start, rows)
    mask = rows["loss_mask"]
    apart = ((rows["old_log_probs"] - reference) * mask).sum(1)
    assert figures["kl"] == pytest.approx(apart.sum() / mask.sum(), rel=1e-3)
    assert "reference_log_probs" not in rows
    rewards = np.array([group.rewards for group in played[0]])
    paid = rewards - 0.5 * apart.reshape(-1, 4)
    expected = paid - (paid.sum(1, keepdims=True) - paid) / 3
    np.testing.assert_allclose(rows["advantages"], expected.reshape(-1), atol=1e-5)


def test_rewards_that_are_all_equal_are_said(caplog):
    rollout = object.__new__(Collector)  # it needs no model to count
    rollout._equal_rollouts = 0
    for step, equal in enumerate([0.5, *[1.0] * 12, 0.5, 1.0]):
        rollout._warn_if_equal(equal, step)
    said = [r.getMessage() for r in caplog.records if "all equal" in r.getMessage()]
    assert [one.split(":")[0] for one in said] == [
        "rollout of step 1",
        "rollout of step 10",
        "rollout of step 14",
    ]


def test_a_gap_may_be_a_warning(caplog):
    made = resolved("objective.sampling.gap_action='warn'").value
    rollout = prepare(made).parts.rollout
    assert isinstance(rollout, Collector)
    rollout._check({"sampler_gap_mean": 1e-3, "sampler_gap_max": 1e-2}, 0)
    assert "gap_limit" in caplog.text
    with pytest.raises(TrainError, match="nan"):
        rollout._check({"sampler_gap_mean": np.nan, "sampler_gap_max": np.nan}, 0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.group=5", "objective.group"),
        ("data.task.reward='reward.py:two'", "three arguments"),
        ("objective.ratio='product',objective.aggregate='token'", "aggregate"),
        ("objective.kl_coef=0,objective.kl_in='reward'", "kl_in"),
        ("objective.updates=3", "checkpoint.every"),
        ("objective.sampling.max_tokens=48", "max_tokens"),
        ("objective.evaluation.k=2", "objective.evaluation"),
        ("data.task.reward='exakt'", "did you mean exact"),
    ],
)
def test_what_does_not_fit_is_refused(override, said):
    with pytest.raises(Exception, match=said) as error:
        prepare(resolved(*override.split(",")).value)
    assert error.type is ConfigError or "prompts.jsonl" in str(error.value)
