"""``ziggurat.train`` with objects of a Python caller in place of tables of the run file."""

import json
import tomllib

import grain
import jax
import numpy as np
import optax
import pytest
from tests.train.runs import TEXT

import ziggurat
from ziggurat.core.errors import ConfigError, DataError
from ziggurat.data import GrainSource, next_token_batch
from ziggurat.train.objectives.lm import PackedText
from ziggurat.train.supplied import Callback


def tables(tmp_path, name="tiny", **more):
    made = tomllib.loads(TEXT) | {"output": str(tmp_path), "name": name}
    for key, value in more.items():
        made[key] = made.get(key, {}) | value
    return made


def parameters(outcome):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(outcome.state.params)]


def adam():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def rows(iterated: bool):
    ids = np.random.default_rng(0).integers(0, 256, (64, 17))
    made = grain.MapDataset.source(ids).shuffle(seed=1).repeat().batch(8).map(next_token_batch)
    return made.to_iter_dataset() if iterated else made


class Seen(Callback):
    """Notes every call; may end the run."""

    def __init__(self, end_after=None):
        self.calls, self._end = [], end_after

    def on_start(self, run, step):
        self.calls.append(("start", step))

    def on_step(self, step, metrics):
        self.calls.append(("step", step, metrics["loss"]))
        return step + 1 == self._end

    def on_save(self, step):
        self.calls.append(("save", step))

    def on_end(self, step, status):
        self.calls.append(("end", step, status))


class Sink:
    def __init__(self):
        self.rows, self.closed = [], False

    def write(self, step, metrics):
        self.rows.append((step, dict(metrics)))

    def close(self):
        self.closed = True


@pytest.mark.slow
@pytest.mark.parametrize("iterated", [False, True], ids=["MapDataset", "IterDataset"])
def test_optimizer_and_data_resume_bit_for_bit(tmp_path, iterated):
    whole = ziggurat.train(tables(tmp_path, "whole"), optimizer=adam(), data=rows(iterated))
    half, sink, stop = tables(tmp_path, "half"), Sink(), Seen(end_after=3)
    first = ziggurat.train(
        half, optimizer=adam(), data=rows(iterated), sinks=[sink], callbacks=[stop]
    )
    assert first.status == "stopped by Seen after step 3"
    assert [call[:2] for call in stop.calls] == [
        *[("start", 0), ("step", 0), ("save", 2), ("step", 1), ("step", 2)],
        *[("save", 3), ("end", 3)],
    ]
    assert [step for step, row in sink.rows if "loss" in row] == [0, 1, 2]
    assert sink.closed
    again = Seen()
    second = ziggurat.train(half, optimizer=adam(), data=rows(iterated), callbacks=[again])
    assert again.calls[0] == ("start", 3)
    assert again.calls[-1] == ("end", 6, "finished")
    assert second.finished
    for ours, theirs in zip(parameters(second), parameters(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(second.metrics) >= 6
    assert "learning_rate" not in second.metrics[0]
    sources = json.loads(second.directory.provenance.read_text())
    assert sources["optimizer.kind"] == sources["data.kind"] == "Python"


@pytest.mark.slow
def test_a_resumed_run_must_be_given_its_objects_again(tmp_path):
    ziggurat.train(tables(tmp_path), overrides=["train.steps=2"], optimizer=adam())
    stored = tmp_path / "tiny" / "run.toml"
    assert 'kind = "python"' in stored.read_text()
    with pytest.raises(ConfigError, match=r"optimizer.kind: found 'python' and no object.*optimiz"):
        ziggurat.train(stored, overrides=["train.steps=4"])
    with pytest.raises(ConfigError, match="cannot be resumed"):
        ziggurat.train(tables(tmp_path), overrides=["train.steps=4"])
    assert ziggurat.train(stored, overrides=["train.steps=4"], optimizer=adam()).finished


@pytest.mark.slow
def test_an_objective_of_the_caller(tmp_path):
    class Halved(PackedText):
        def sums(self, run, model, layout):
            inner = super().sums(run, model, layout)

            def objective(params, batch, frozen):
                sums = inner(params, batch, frozen)
                metrics = {"loss": sums.metrics["loss"] / 2}
                return sums._replace(loss=sums.loss / 2, metrics=metrics)

            return objective

    steps = ["train.steps=1"]
    plain = ziggurat.train(tables(tmp_path, "plain"), overrides=steps)
    halved = ziggurat.train(tables(tmp_path, "halved"), overrides=steps, objective=Halved())
    loss = [next(r["loss"] for r in o.metrics if "loss" in r) for o in (plain, halved)]
    assert loss[1] == pytest.approx(loss[0] / 2, rel=1e-6)
    assert tomllib.loads(halved.directory.run_file.read_text())["objective"] == {
        "kind": "python",
        "type": Halved.__qualname__,
    }


def test_a_failing_sink_ends_no_run_and_a_failing_callback_does(tmp_path):
    class Torn(Sink):
        def write(self, step, metrics):
            raise OSError("no route")

    class Rude(Callback):
        def on_step(self, step, metrics):
            raise RuntimeError("no")

    one = ["train.steps=1"]
    assert ziggurat.train(tables(tmp_path, "a"), overrides=one, sinks=[Torn()]).finished
    with pytest.raises(RuntimeError, match="no"):
        ziggurat.train(tables(tmp_path, "b"), overrides=one, callbacks=[Rude()])


def test_what_is_no_source_is_refused_with_what_it_lacks(tmp_path):
    with pytest.raises(DataError, match=r"nothing called batch_size, .*check_state"):
        ziggurat.train(tables(tmp_path), data=[1, 2])
    with pytest.raises(DataError, match="next_token_batch"):
        GrainSource(grain.MapDataset.source(np.arange(8)))


def test_data_of_a_caller_is_for_objectives_that_take_it(tmp_path):
    run = tables(tmp_path, objective={"kind": "dpo"})
    with pytest.raises(ConfigError, match=r"a .data. table, for objective.kind = dpo"):
        ziggurat.train(run, data=rows(False))


def test_an_outcome_is_short_and_has_its_model(tmp_path):
    outcome = ziggurat.train(tables(tmp_path), overrides=["train.steps=1"])
    assert repr(outcome) == f"TrainingOutcome('finished', step 1 of 1, {tmp_path / 'tiny'})"
    assert len(repr(outcome.model).splitlines()) == 1
    assert "llama" in repr(outcome.model)
    text = ziggurat.generate(outcome.model, "def ", max_tokens=4, temperature=0.0)
    assert text == ziggurat.generate(outcome.directory.path, "def ", max_tokens=4, temperature=0.0)
