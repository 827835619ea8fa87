"""Training mixtures of experts: losses of routers, the correcting bias, and a run that learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.models.family_cases import ours
from tests.train.runs import resolved, run

from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.core.pytrees import named_leaves
from ziggurat.mesh import MeshConfig, build
from ziggurat.optim import LossConfig, Optimizer
from ziggurat.train import experiment
from ziggurat.train.loop import train
from ziggurat.train.metrics import read_metrics
from ziggurat.train.objectives.lm import language_modelling
from ziggurat.train.state import TrainState
from ziggurat.train.step import build_step

MIXTRAL = "model={kind='mixtral', vocab_size=288, d_model=32, n_layers=2, n_heads=4, d_ff=32,"
MIXTRAL += " n_experts=4}"
CASE = "deepseek/plain"  # two dense layers, then two of 8 experts of which a token takes 3


def batch():
    """Four rows of 12 tokens, the last third of which is padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 96, (4, 13))
    real = np.broadcast_to(np.arange(12) < 8, (4, 12))
    return {
        "tokens": jnp.asarray(tokens[:, :-1]),
        "targets": jnp.asarray(tokens[:, 1:]),
        "segment_ids": jnp.asarray(real, jnp.int32),
        "positions": jnp.asarray(np.where(real, np.arange(12), 0), jnp.int32),
        "loss_mask": jnp.asarray(real, jnp.float32),
    }


def still() -> Optimizer:
    """An optimizer that moves nothing."""

    def update(updates, state, params=None, **_):
        return jax.tree.map(jnp.zeros_like, updates), state

    transform = optax.GradientTransformationExtraArgs(lambda params: (), update)
    return Optimizer(transform, lambda step: 0.0, ())


@pytest.mark.slow
def test_losses_and_correcting_biases():
    """One step in two micro-batches: losses of routers are in the metrics and the gradient, only
    biases move, and by the rate; padding has no part."""
    model, params = ours(CASE).model, ours(CASE).params
    layout = build(MeshConfig(), jax.devices()[:1])
    loss = LossConfig(load_balancing=0.5, router_z_loss=0.25, router_bias_rate=0.125)
    objective = language_modelling(model, loss, layout)
    step = build_step(objective, still(), layout, accumulate=2, router_bias_rate=0.125)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(params, (), zero, zero, zero)

    @jax.jit
    def everything(state, batch):
        return *step(state, batch), objective(state.params, batch, {})

    new, metrics, whole = everything(state, batch())
    counts = whole.loads["blocks_1"]
    assert counts.sum(-1).tolist() == [3 * 32, 3 * 32]
    extra = 0.5 * whole.metrics["load_balancing_loss"] + 0.25 * whole.metrics["router_z_loss"]
    assert extra > 32
    np.testing.assert_allclose(whole.loss - whole.metrics["loss"], extra, rtol=1e-4)
    assert 1 <= metrics["max_expert_load"] <= 8 / 3
    before, after = named_leaves(params), named_leaves(new.params)
    name = "blocks_1.mlp.router.correction_bias"
    mean = counts.mean(-1, keepdims=True)
    expected = before[name] + 0.125 * np.sign(mean - counts)
    np.testing.assert_allclose(after[name], expected, atol=1e-6)
    assert len(np.unique(np.sign(mean - counts))) > 1
    for other in before.keys() - {name}:
        np.testing.assert_array_equal(after[other], before[other])


@pytest.mark.slow
def test_a_mixture_learns(tmp_path, monkeypatch):
    devices = jax.devices()[:4]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    settings = ["train.steps=16", "checkpoint.every=16", "mesh={fsdp=2, expert=2}"]
    settings += ["objective.loss.load_balancing=0.01", MIXTRAL]
    outcome = train(resolved(f"output={tmp_path}", *settings))
    assert outcome.finished
    rows = [r for r in read_metrics(tmp_path / "tiny" / "metrics.jsonl") if "loss" in r]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.7
    assert all(1 <= r["load_balancing_loss"] < 4 for r in rows)
    assert all(1 <= r["max_expert_load"] <= 2 for r in rows)


@pytest.mark.parametrize(
    ("override", "error", "text"),
    [
        ("objective.loss.load_balancing=0.1", ConfigError, "load_balancing: found 0.1"),
        ("objective.loss.router_z_loss=0.1", ConfigError, "router_z_loss: found 0.1"),
        ("objective.loss.router_bias_rate=0.1", ConfigError, "router_bias_rate: found 0.1"),
        ("mesh.expert=2", ShardingError, "mesh.expert: found 2; expected 1 for a model without"),
    ],
)
def test_what_a_dense_model_has_not_is_refused(tmp_path, override, error, text):
    with pytest.raises(error, match=text):
        experiment.prepare(run(f"output={tmp_path}", override, "mesh.fsdp=-1"))
