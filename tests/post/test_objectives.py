"""Objectives in the one loop, from run files: what is learned, saved, resumed and read back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.post.runs import COUNT, finish, fresh, resolved, source, write_data

from ziggurat.core.errors import CheckpointError, ConfigError
from ziggurat.core.pytrees import named_leaves
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import formats_of, quantized, summed_axes
from ziggurat.post.reward_model import RewardModel
from ziggurat.quantize import resolve
from ziggurat.quantize.weights import quantize
from ziggurat.train.experiment import prepare
from ziggurat.train.metrics import curve, read_metrics

ADAPTER = 'adapter={kind = "lora", rank = 4, alpha = 16.0}'


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with data and an untrained base; programs are compiled with little effort and
    run on one device."""
    directory = tmp_path_factory.mktemp("post")
    write_data(directory)
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        fresh(directory / "base")
        yield directory


def metrics(directory, name):
    return [value for _, value in curve(read_metrics(directory / "metrics.jsonl"), name)]


def equal(ours, theirs):
    ours, theirs = named_leaves(ours), named_leaves(theirs)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def logits(model, params):
    return np.asarray(model.logits(params, jnp.arange(24)[None]))


@pytest.fixture(scope="module")
def small(here):
    """The base in eight bits."""
    loaded = pretrained.load(here / "base")
    done = quantize(loaded.params, resolve("int8"), summed_axes(loaded.model))
    model = quantized(loaded.model, done.formats)
    pretrained.save(
        dataclasses.replace(loaded, model=model, params=done.params), here / "small", {}
    )
    return here / "small"


@pytest.fixture(scope="module")
def tuned(here, small):
    """Fine-tuned adapters beside eight bits, in one go."""
    settings = (source(here, "completions"), "objective.kind='sft'", ADAPTER, "train.steps=12")
    settings += (
        'data.packing={kind = "first_fit"}',
        "data.sequence_length=32",
        "optimizer.lr=1e-2",
    )
    return (small, *settings), finish(small, f"output={here / 'whole'}", *settings)


@pytest.mark.slow
def test_fine_tuning_learns_completions_only(here, tuned):
    _, outcome = tuned
    losses = metrics(here / "whole/run", "loss")
    assert losses[-1] < losses[0] - 0.3, "12 steps of adapters beside untrained weights"
    batch = outcome.experiment.data.batch(0)
    learned = batch["targets"][batch["loss_mask"] > 0]
    prompts = batch["targets"][(batch["loss_mask"] == 0) & (batch["segment_ids"] > 0)]
    assert set(learned.tolist()) <= {*b"yes 0123456789", 256}
    assert ord("?") in prompts


@pytest.mark.slow
def test_interrupted_adapters_end_where_undisturbed_ones_end(here, tuned):
    (small, *settings), outcome = tuned
    base = {name: np.asarray(leaf) for name, leaf in named_leaves(_frozen(outcome)).items()}
    stopped = (f"output={here / 'stopped'}", *settings)
    finish(small, *stopped, "train.steps=5")
    again = finish(small, *stopped)
    equal(again.state.params, outcome.state.params)
    equal(again.state.optimizer, outcome.state.optimizer)
    equal(_frozen(again), base)
    assert metrics(here / "stopped/run", "loss") == metrics(here / "whole/run", "loss")


def _frozen(outcome):
    return outcome.experiment.parts.frozen["base"]


@pytest.mark.slow
def test_a_run_of_adapters_is_a_model(here, tuned):
    """Merged when it is read: what every command and the next run file take."""
    _, outcome = tuned
    parts, state = outcome.experiment.parts, outcome.state
    assert all(name.endswith((".a", ".b")) for name in named_leaves(state.params))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    whole = pretrained.load(here / "whole/run")
    assert kept < sum(leaf.nbytes for leaf in jax.tree.leaves(whole.params)) / 2
    assert set(formats_of(whole.params)) == {"embedding.table"}
    joined = parts.program.model.policy(state.params, parts.frozen)
    ours = logits(parts.program.model.model, joined)
    assert np.abs(ours - logits(whole.model, whole.params)).max() < 2e-4
    assert np.abs(ours - logits(*_loaded(here / "small"))).max() > 0.1
    straight = parts.pretrained(state.params)
    equal(straight.params, whole.params)


def _loaded(path):
    found = pretrained.load(path)
    return found.model, found.params


def test_preference_raises_accuracy_on_held_out_pairs(here):
    """With adapters, whose reference is the base without them."""
    settings = (f"output={here / 'dpo'}", source(here, "pairs"), "objective.kind='dpo'", ADAPTER)
    settings += ("data.eval_fraction=0.25", "evaluation.every=5", "optimizer.lr=1e-2")
    outcome = finish(here / "base", *settings, "train.steps=20")
    first = {name: metrics(here / "dpo/run", name)[0] for name in ("loss", "rewards/margins")}
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    held_out = metrics(here / "dpo/run", "eval_accuracy")
    assert held_out[-1] == 1.0
    assert metrics(here / "dpo/run", "eval_rewards/accuracies") == held_out
    margins = metrics(here / "dpo/run", "eval_rewards/margins")
    assert margins[-1] > margins[0] > 0.1
    pairs = outcome.experiment.data.rows_per_epoch
    assert 4 < COUNT - pairs < 24
    assert metrics(here / "dpo/run", "eval_tokens")[-1] == COUNT - pairs


def test_judged_answers_move_apart(here):
    settings = (f"output={here / 'kto'}", source(here, "labelled"), "objective.kind='kto'")
    settings += ("data.eval_fraction=0.25", "evaluation.every=20", "train.steps=20")
    finish(here / "base", *settings, "data.filter={}")
    assert metrics(here / "kto/run", "loss")[0] == pytest.approx(0.5, abs=1e-6)
    assert metrics(here / "kto/run", "eval_rewards/margins")[-1] > 0.3
    assert metrics(here / "kto/run", "eval_accuracy")[-1] > 0.7
    assert all(value >= 0 for value in metrics(here / "kto/run", "kl"))


@pytest.mark.slow
def test_a_reward_model_tells_answers_apart(here):
    settings = (f"output={here / 'reward'}", source(here, "pairs"), "objective.kind='reward'")
    settings += ("data.eval_fraction=0.25", "evaluation.every=30", "train.accumulate=2")
    finish(here / "base", *settings, "train.steps=30")
    assert metrics(here / "reward/run", "eval_accuracy")[-1] > 0.9
    model = RewardModel.load(here / "reward/run")
    new = [f"{n}?{answer} 3" for n in range(200, 220) for answer in ("yes", "no")]
    scores = model(new).reshape(-1, 2)
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.9
    with pytest.raises(CheckpointError, match="no score among its parameters"):
        RewardModel.load(here / "base")


def test_a_reward_model_learns_the_margins_of_its_records(here):
    """-log sigmoid of the scores' difference less each record's margin, as in TRL."""
    settings = (f"output={here / 'margins'}", "objective.kind='reward'", "data.batch_size=1")
    settings += ("data.shuffle=false",)
    made = prepare(resolved(here / "base", source(here, "margins"), *settings).value)
    params = made.initial().params
    batch = made.data.batch(7)
    assert batch["margin"].tolist() == [[7 / 8]]
    sums = made.parts.program.sums(params, jax.tree.map(jnp.asarray, batch), {})
    expected = np.logaddexp(0, -(sums.metrics["rewards/margins"] - 7 / 8))
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.kind='dpo'", "objective dpo: found records with a margin"),
        ("objective={kind='reward', margin=1.0}", "objective.margin: found 1.0, and records"),
    ],
)
def test_margins_are_honoured_once_or_refused(override, said, here):
    settings = (f"output={here / 'refused'}", source(here, "margins"), override)
    with pytest.raises(ConfigError, match=said):
        prepare(resolved(here / "base", *settings).value)


def test_a_student_comes_to_predict_as_its_teacher(here):
    settings = (f"output={here / 'student'}", source(here, "completions"), "train.steps=20")
    teacher = fresh(here / "teacher", seed=5)
    settings += ("objective.kind='distill'", f"objective.teacher='{teacher}'", "optimizer.lr=1e-2")
    finish(here / "base", *settings, "objective.chunk_tokens=40", "objective.divergence='js'")
    apart = metrics(here / "student/run", "divergence")
    assert apart[-1] < 0.5 * apart[0]
    equal(
        pretrained.load(here / "teacher").params,
        prepare(resolved(here / "base", *settings).value).parts.frozen["teacher"],
    )


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (("objective.kind='dpo'", "data.sources.0.content='chosen'"), "found 'chosen'; expected"),
        (("objective.kind='lm'", ADAPTER), "adapter: found 'a table', expected nothing for this"),
        (("objective.kind='dpo'", "objective.label_smoothing=0.6"), "a chance below 0.5"),
        (
            ("objective.kind='sft'", "objective.chat_template='none.jinja'"),
            "objective.chat_template: found 'none.jinja'",
        ),
        (
            (
                "objective.kind='dpo'",
                "model={kind='llama', vocab_size=288, d_model=32, n_layers=2, n_heads=4}",
                "tokenizer={kind='bytes'}",
            ),
            "objective dpo: found a new model",
        ),
    ],
)
def test_what_does_not_fit_is_refused(overrides, found, here):
    settings = (f"output={here / 'refused'}", source(here, "pairs"), *overrides)
    with pytest.raises(ConfigError, match=found):
        prepare(resolved(here / "base", *settings).value)


def test_quantised_weights_are_not_trained_themselves(here, small):
    settings = (f"output={here / 'refused'}", source(here, "completions"), "objective.kind='sft'")
    with pytest.raises(ConfigError, match=r"quantised weights.*with an \[adapter\] table"):
        prepare(resolved(small, *settings).value)
