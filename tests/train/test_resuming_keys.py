"""Every key of the run file, changed when a run is resumed: refused by name, or without effect."""

import dataclasses
import typing
from pathlib import Path

import jax
import numpy as np
import pytest
from tests.train.runs import resolved, run

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.train import resuming
from ziggurat.train.config import RunConfig
from ziggurat.train.loop import train


def listed(hint) -> bool:
    """Whether a type holds several of its nodes."""
    return typing.get_origin(hint) is tuple or any(listed(one) for one in typing.get_args(hint))


def filled(cls: type, values: dict):
    """A node with these values and defaults, unchecked: only what is written down is compared."""
    made = object.__new__(cls)
    for field in dataclasses.fields(cls):
        default = None if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        object.__setattr__(made, field.name, values.get(field.name, default))
    return made


def leaves(cls: type, key: str = "", whole=lambda node: node):
    """Every key below a class, by every member of every union: its dotted name, and from a value
    of it to the run that holds it."""
    for field in dataclasses.fields(cls):
        name, inside = f"{key}{field.name}", config.variants(field.type)
        for node in inside:
            many = listed(field.type)

            def outer(made, cls=cls, field=field, many=many, whole=whole):
                return whole(filled(cls, {field.name: (made,) if many else made}))

            yield from leaves(node, f"{name}.0." if many else f"{name}.", outer)
        if not inside:
            yield name, lambda value, c=cls, f=field, w=whole: w(filled(c, {f.name: value}))


KEYS = dict(leaves(RunConfig))

WITHOUT_EFFECT = {
    "train.max_bad_steps": "3",
    "train.stop_within_s": "900.0",
    "train.compile_cache": "'{tmp}/compiled'",
    "evaluation.every": "1",
    "evaluation.batches": "2",
    "checkpoint.every": "1",
    "checkpoint.keep_last": "1",
    "checkpoint.keep_every": "3",
    "checkpoint.keep_best": "1",
    "checkpoint.metric": "'accuracy'",
    "checkpoint.best": "'highest'",
    "checkpoint.asynchronous": "false",
    "checkpoint.verify": "false",
    "checkpoint.retries": "1",
    "checkpoint.retry_wait_s": "0.5",
    "checkpoint.persistent.url": "'{tmp}/store'",
    "checkpoint.persistent.every": "2",
    "checkpoint.persistent.keep_last": "1",
    "checkpoint.persistent.keep_every": "2",
    "profile.trace": "false",
    "profile.trace_after_s": "5.0",
    "profile.trace_every_s": "90.0",
    "report.tensorboard": "true",
    "report.prompts": "['import ']",
    "report.sample_tokens": "3",
    "data.workers": "1",
    "data.prefetch": "1",
    "data.worker_patience_s": "90.0",
}
"""Keys without effect, each with another value than the run has: all are changed at once."""
ELSEWHERE = {
    "name": "another directory, so no resumption",
    "output": "likewise",
    "report.sample_images": "of models that draw; read when the run is over",
    "report.sample_guidance": "likewise",
    "checkpoint.memory.every": "needs a keeper process; tests/train/test_elastic.py",
    "checkpoint.memory.linger_s": "likewise",
    "objective.evaluation.samples": "of reinforcement learning; tests/post",
    "objective.evaluation.temperature": "likewise",
    "objective.evaluation.k": "likewise",
    "objective.reward.processes": "likewise",
    "checkpoint.persistent.kind": "has one value",
    "checkpoint.tiers.0.kind": "likewise",
    "checkpoint.tiers.0.url": "as checkpoint.persistent.url; tests/test_plugins.py",
    "checkpoint.tiers.0.every": "likewise",
    "checkpoint.tiers.0.keep_last": "likewise",
    "checkpoint.tiers.0.keep_every": "likewise",
    "report.sinks": "of plugins; tests/test_plugins.py",
    "train.callbacks": "likewise",
}
"""Keys without effect that a language model's run cannot show."""
ON_PURPOSE = {
    "train.steps", "train.accumulate", "optimizer.schedule.steps", "mesh.data", "mesh.fsdp",
    "mesh.context", "mesh.tensor", "mesh.expert", "mesh.pipeline", "mesh.dcn.data",
    "mesh.dcn.fsdp", "mesh.dcn.pipeline", "mesh.rules",
}  # fmt: skip
BY_CONTENT = ("data.sources.", "data.source.", "data.mixture.")


def test_every_key_is_in_one_group():
    """A new key is refused on resume until it is put into a group; under a table that is free as a
    whole it has to be listed here, with a value that shows it harmless."""
    free = {key for key in KEYS if resuming.is_free(key)}
    compared = {key for key in free if key.startswith(BY_CONTENT)} | {"data.epochs"}
    assert free - compared == {*WITHOUT_EFFECT, *ELSEWHERE, *ON_PURPOSE}
    assert len(KEYS) > 250


@pytest.mark.parametrize("key", sorted(set(KEYS)))
def test_a_changed_key_is_refused_by_its_name_or_told(key):
    value = ("one", "other") if key in ("name", "output") else (1, 2)
    before, after = (KEYS[key](v) for v in value)
    assert set(resuming.differing(before, after)) == {key}
    if resuming.is_free(key):
        resuming.check_same_run(before, after)
        return
    for one in (before, after):
        object.__setattr__(one, "name", "tiny")
        object.__setattr__(one, "output", Path("runs"))
    with pytest.raises(ConfigError, match=f"found {key} = 2; expected {key} = 1"):
        resuming.check_same_run(before, after)


def parameters(outcome) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(outcome.state.params)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Parameters after four steps."""
    directory = tmp_path_factory.mktemp("whole")
    settings = ("train.steps=4", "data.eval_fraction=0.3", "mesh.data=1")
    return parameters(train(resolved(f"output={directory}", *settings)))


@pytest.mark.slow
def test_keys_without_effect_leave_every_bit(tmp_path, undisturbed):
    """Two steps, then two more with every such key changed, and with a longer run asked for later:
    the same parameters as four steps in one go."""
    base = (f"output={tmp_path}", "data.eval_fraction=0.3", "mesh.data=1")
    train(resolved(*base, "train.steps=2", "optimizer.schedule.steps=4"))
    changes = [f"{k}={v.format(tmp=tmp_path)}" for k, v in WITHOUT_EFFECT.items()]
    outcome = train(resolved(*base, "train.steps=4", *changes))
    told = resuming.differing(resolved(*base).value, outcome.run.value)
    assert set(WITHOUT_EFFECT) <= set(told), "each key has another value than the run had"
    for found, expected in zip(parameters(outcome), undisturbed, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_a_longer_run_keeps_its_schedule(tmp_path, capsys, undisturbed):
    """The learning rate never jumps when ``train.steps`` is raised; it does where the schedule is
    asked to, and both are printed. A length that is passed already is refused."""
    base = (f"output={tmp_path}", "data.eval_fraction=0.3", "mesh.data=1")
    train(resolved(*base, "train.steps=4"))
    assert (
        "steps = 4" in (tmp_path / "tiny/run.toml").read_text().partition("[optimizer.schedule]")[2]
    )
    longer = train(resolved(*base, "train.steps=6"))
    said = capsys.readouterr().err
    assert "changed: train.steps: 4 -> 6 (from step 4 on the learning rate stays 0" in said
    for found, expected in zip(parameters(longer), undisturbed, strict=True):
        np.testing.assert_array_equal(found, expected)  # at a learning rate of 0
    again = train(resolved(*base, "train.steps=7", "optimizer.schedule.steps=8"))
    said = capsys.readouterr().err
    assert (
        "changed: optimizer.schedule.steps: 4 -> 8 (learning rate of step 6: 0 -> 0.00146)" in said
    )
    assert any((a != b).any() for a, b in zip(parameters(again), undisturbed))
    with pytest.raises(ConfigError, match=r"train\.steps: found 3, though step 7 is done"):
        train(resolved(*base, "train.steps=3"))
    kept = config.load(RunConfig, tmp_path / "tiny/run.toml").value
    assert (kept.train.steps, kept.optimizer.schedule.steps) == (7, 8)


def test_a_store_of_a_run_with_another_schedule_is_refused():
    """A machine that has only the persistent store cannot have read the run's schedule."""
    old, _ = resuming.resumed(resolved("train.steps=4"), "")
    new, _ = resuming.resumed(resolved("train.steps=6"), "")
    with pytest.raises(ConfigError, match=r"steps = 6; expected 4.*give optimizer.schedule.steps"):
        resuming.check_stored(old.value, new.value)
    resuming.check_stored(old.value, run("train.steps=6", "optimizer.schedule.steps=4"))
