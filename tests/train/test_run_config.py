"""Rules that hold between the tables of a run file, and between a run and what it restores."""

import numpy as np
import pytest
from tests.train.runs import resolved, run

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.train.resuming import check_same_run
from ziggurat.train.run_directory import RunDirectory
from ziggurat.train.starting import open_checkpoints

BEST = "checkpoint.keep_best=1"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (('checkpoint.metric="los"',), "found 'los', expected one of loss, accuracy"),
        ((), "found 'eval_loss', expected data.eval_fraction and evaluation.every set"),
        (("evaluation.every=2",), "found 'eval_loss', expected data.eval_fraction"),
        (("data.eval_fraction=0.1",), "found 'eval_loss', expected data.eval_fraction"),
    ],
)
def test_the_best_needs_a_metric_that_is_there(overrides, said):
    with pytest.raises(ConfigError, match=f"checkpoint.metric: {said}"):
        resolved(BEST, *overrides)


def test_the_best_by_a_metric_that_is_there():
    assert run(BEST, 'checkpoint.metric="loss"').checkpoint.metric == "loss"
    held_out = run(BEST, "evaluation.every=2", "data.eval_fraction=0.1")
    assert held_out.checkpoint.metric == "eval_loss"


def test_what_may_change_on_resume():
    check_same_run(run(), run("train.steps=9", "data.workers=2", "data.epochs=3"))
    with pytest.raises(ConfigError, match="found seed = 4; expected seed = 3"):
        check_same_run(run(), run("seed=4"))


def test_a_store_that_holds_another_run_is_refused(tmp_path):
    store = f'checkpoint.persistent={{url="{tmp_path / "store"}", every=2}}'
    trees = {"params": {"w": np.ones(3)}}

    def opened(seed):
        node = run(store, f"seed={seed}", f'output="{tmp_path}"', f'name="of-{seed}"')
        return node, open_checkpoints(node, RunDirectory(node.directory), f"{seed}")

    node, checkpoints = opened(3)
    with checkpoints:
        text = config.to_toml(node).encode()
        checkpoints.save(2, trees, {}, {"run.toml": text}, final=True)
    _, again = opened(4)
    with pytest.raises(ConfigError, match="found seed = 4; expected seed = 3"), again:
        again.restore(None, trees)
    _, same = opened(3)
    with same:
        assert same.restore(None, trees).step == 2
