"""The objective in the training loop: it learns, resumes bit for bit, measures, and refuses.

All runs, and the sampler of the other tests here, have the same shapes, and so the same programs.
"""

import jax
import numpy as np
import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, TrainError
from ziggurat.core.pytrees import named_leaves
from ziggurat.post import OBJECTIVES
from ziggurat.post.rl.arena import Arena
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

[evaluation]
batches = 1

[report]
tensorboard = false
"""
REWARD = '''
def plain(prompt, completion, row):
    """Share of the completion's characters that are ASCII; at first about a half are."""
    return sum(c.isascii() for c in completion) / max(len(completion), 1)
'''
MEASURED = ("reward", "loss", "grad_norm", "sampler_gap_mean", "entropy")


@pytest.fixture(autouse=True)
def one_device_and_files(monkeypatch, tmp_path):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward.py").write_text(REWARD)
    lines = [f'{{"prompt": "say {word}", "n": 1}}' for word in "abcdefghijkl"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))


def resolved(*overrides):
    return config.parse(RunConfig, RUN, overrides, source="tiny.toml")


def run(*overrides):
    return train(resolved(*overrides), objectives=OBJECTIVES)


def measured(outcome):
    rows = read_metrics(outcome.directory.metrics)
    return [tuple(row[name] for name in MEASURED if name in row) for row in rows if "loss" in row]


def test_reward_rises_and_everything_is_recorded():
    outcome = run("train.steps=16", "objective.scale='none'")
    rows = [row for row in read_metrics(outcome.directory.metrics) if "loss" in row]
    rewards = [row["reward"] for row in rows]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1
    first, last = rows[0], rows[-1]
    assert first["sampler_gap_mean"] < 1e-5
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert last["kl"] > 1e-4
    assert first["ratio"] == pytest.approx(1, abs=1e-5)
    assert 0 < first["entropy"] < np.log(257)
    assert first["clip_fraction"] == 0
    assert 1 <= first["completion_tokens"] <= 6
    assert [row["weights_version"] for row in rows] == list(range(16))
    assert first["generated_tokens_per_s"] > 0
    assert "rollout" in outcome.timer.records[0].phases_s
    final = read_metrics(outcome.directory.metrics)[-2:]
    (found,) = [row for row in final if "eval_pass_at_1" in row]
    assert found["eval_pass_at_1_low"] <= found["eval_pass_at_1"] <= found["eval_pass_at_1_high"]
    assert found["eval_problems"] == 4


def test_a_killed_run_makes_the_same_rollouts_again(monkeypatch):
    """Ended between two steps that share a rollout, then killed in the middle of one."""
    steps = ("objective.updates=2", "train.steps=6")
    whole = run("name=whole", *steps)
    run("name=broken", "objective.updates=2", "train.steps=3")
    play, calls = Arena.play, []

    def dies(self, *args):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return play(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Arena, "play", dies)
        with pytest.raises(KeyboardInterrupt):
            run("name=broken", *steps)
    broken = run("name=broken", *steps)
    assert measured(broken) == measured(whole)
    assert len(measured(whole)) == 6
    ours, theirs = named_leaves(broken.state.params), named_leaves(whole.state.params)
    assert all((np.asarray(ours[name]) == np.asarray(theirs[name])).all() for name in theirs)
    ratios = [row["ratio"] for row in read_metrics(whole.directory.metrics) if "ratio" in row]
    assert ratios[0] == pytest.approx(1, abs=1e-6)
    assert ratios[1] != pytest.approx(1, abs=1e-4)  # the second step learns off policy


def test_a_sampler_that_is_not_the_policy_is_found(monkeypatch, caplog):
    play = Arena.play

    def other(self, params, *rest):
        return play(self, jax.tree.map(lambda leaf: leaf * 1.01, params), *rest)

    monkeypatch.setattr(Arena, "play", other)
    for action in ("error", "warn"):
        made = resolved(f"objective.sampling.gap_action='{action}'").value
        experiment = prepare(made, objectives=OBJECTIVES)
        params, rollout = experiment.initial().params, experiment.parts.rollout
        assert rollout is not None
        if action == "error":
            with pytest.raises(TrainError, match="gap_limit"):
                rollout(params, experiment.data.batch(0), 0)
        else:
            _, figures = rollout(params, experiment.data.batch(0), 0)
            assert figures["sampler_gap_mean"] > 1e-4
            assert "gap_limit" in caplog.text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.group=5", "objective.group"),
        ("objective.updates=3", "checkpoint.every"),
        ("objective.sampling.max_tokens=48", "max_tokens"),
        ("objective.evaluation.k=2", "objective.evaluation"),
        ("data.task.reward='exakt'", "line 1"),
    ],
)
def test_what_does_not_fit_is_refused(override, said):
    with pytest.raises(Exception, match=said) as error:
        prepare(resolved(override).value, objectives=OBJECTIVES)
    assert error.type is ConfigError or "prompts.jsonl" in str(error.value)
