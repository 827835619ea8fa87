"""Parameters in bfloat16: gradients as those of float32, and steps that add up however small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tests.train.tiny_families import ROWS, TOKENS, VOCAB, families

from ziggurat.core import config
from ziggurat.core.pytrees import named_leaves, size_bytes
from ziggurat.mesh import MeshConfig, build
from ziggurat.models import DiffusionModel, LanguageModel
from ziggurat.models.families.dit import DitConfig
from ziggurat.nn.linear import Embedding, Linear
from ziggurat.nn.norm import LayerNorm, RMSNorm
from ziggurat.nn.precision import Precision
from ziggurat.optim import Constant, LossConfig, OptimizerConfig, global_norm
from ziggurat.optim import build as build_optimizer
from ziggurat.optim.master_weights import MasterState
from ziggurat.train.objectives.diffusion import FlowMatching, diffusion
from ziggurat.train.objectives.lm import language_modelling
from ziggurat.train.state import TrainState, abstract_state
from ziggurat.train.step import Sums, _accumulated, build_step

BOUND = 0.005
"""Relative norm of a gradient's error. Each leaf of a gradient is rounded to bfloat16 once, by at
most 2^-9 = 0.2 % an element; the compute type is float32 on both sides, or bfloat16 on both, so
that nothing else differs: compared across compute types the activations' own rounding, 0.4 %, would
hide what is looked for."""


def subject(config, precision: Precision):
    """A family's model, objective and batch."""
    rng = np.random.default_rng(0)
    if isinstance(config, DitConfig):
        model = DiffusionModel.build(config, precision)
        images = rng.normal(size=(ROWS, 8, 8, 1)).astype(np.float32)
        rows = np.arange(ROWS, dtype=np.int32)
        batch = {"images": images, "labels": rows % 3, "weight": np.ones(ROWS, np.float32)}
        batch |= {"step": np.zeros(ROWS, np.int32), "index": rows}
        return model, diffusion(model, FlowMatching(), 0), batch
    model = LanguageModel.build(config, precision)
    # few ids come often, as in text
    drawn = np.minimum(rng.geometric(0.15, (ROWS, TOKENS + 1)) - 1, VOCAB - 1).astype(np.int32)
    where = np.broadcast_to(np.arange(TOKENS, dtype=np.int32), (ROWS, TOKENS))
    batch = {"tokens": drawn[:, :-1], "targets": drawn[:, 1:], "positions": where}
    batch |= {"segment_ids": np.ones_like(where), "loss_mask": np.ones((ROWS, TOKENS), np.float32)}
    layout = build(MeshConfig(), jax.devices()[:1])
    return model, language_modelling(model, LossConfig(), layout), batch


def spread(params):
    """Parameters of which none is zero, so that every gradient is there."""
    rng = np.random.default_rng(1)

    def moved(x):
        noise = 0.1 * rng.normal(size=x.shape)
        return jnp.asarray(np.asarray(x, np.float32) + noise, x.dtype)

    return jax.tree.map(moved, params)


QUICK = ("gpt2",)
"""Learned positions, norms with biases, biases everywhere."""


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in families()]
)
def test_gradients_are_those_of_float32(kind):
    """Every leaf of every family, in one batch and in micro-batches."""
    config = families()[kind]

    def errors(params, batch, compute):
        def gradient(dtype, parts):
            _, objective, _ = subject(config, Precision(dtype, compute))
            own = jax.tree.map(lambda x: x.astype(dtype), params)
            one = jax.grad(lambda p, b: (lambda s: (s.loss, s))(objective(p, b, {})), has_aux=True)
            return (one(own, batch) if parts == 1 else _accumulated(one, own, batch, parts))[0]

        truth = gradient("float32", 1)

        # of what is zero in exact arithmetic (biases of keys without rotary positions, corrections
        # of routers) only noise is left, and no relative error
        least = 1e-5 * global_norm(truth)

        def error(got, true):
            difference = jnp.linalg.norm((got.astype(jnp.float32) - true).ravel())
            return difference / jnp.maximum(jnp.linalg.norm(true.ravel()), least)

        parts = (1, 4) if kind in QUICK else (4,)
        return {n: jax.tree.map(error, gradient("bfloat16", n), truth) for n in parts}

    model, _, batch = subject(config, Precision("bfloat16", "float32"))
    params = spread(model.init(jax.random.key(0)))
    found = jax.jit(errors, static_argnums=2)(params, batch, "float32")
    # each micro-batch's gradient is rounded to bfloat16, and in these they largely cancel
    cancelling = ("mamba.step_bias", "delta_net.decay_bias")
    bounds = {name: BOUND * (1 + name.endswith(cancelling)) for name in named_leaves(found)}
    large = {name: float(e) for name, e in named_leaves(found).items() if not e < bounds[name]}
    assert not large


@pytest.mark.parametrize("rows", [64, 4096])
def test_sums_over_tokens_are_float32(rows):
    """Gradients of vectors that all tokens share, under bfloat16 activations: the error does not
    grow with the tokens, whose exact sum is known."""
    precision, width = Precision("bfloat16", "bfloat16"), 8
    rest = {"precision": precision, "rngs": nnx.Rngs(0)}
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, rows, width)), jnp.bfloat16)
    # what flows back is positive, so that sums grow and bfloat16 would lose the new summands
    back = jnp.asarray(rng.uniform(0.5, 1.5, (1, rows, width)), jnp.bfloat16)
    exact = np.asarray(back, np.float64)[0].sum(0)

    def gradient(layer, leaf, x):
        graph, state = nnx.split(layer)

        def total(state):
            return jnp.sum(
                nnx.merge(graph, state)(x).astype(jnp.float32) * back.astype(jnp.float32)
            )

        grads = nnx.to_pure_dict(jax.jit(jax.grad(total))(state))
        return np.asarray(grads[leaf], np.float64)

    biased = Linear(width, width, (None, None), bias=True, std=0.1, **rest)
    np.testing.assert_allclose(gradient(biased, "bias", x), exact, rtol=BOUND)
    np.testing.assert_allclose(
        gradient(LayerNorm(width, eps=1e-6, precision=precision), "bias", x), exact, rtol=BOUND
    )
    ones = jnp.ones_like(x)  # of which the norm is one: the scale's gradient is what flows back
    scaled = RMSNorm(width, eps=0.0, precision=precision)
    np.testing.assert_allclose(gradient(scaled, "scale", ones), exact, rtol=BOUND)
    table = Embedding(2, width, std=0.1, **rest)
    found = gradient(table, "table", jnp.zeros((1, rows), jnp.int32))
    np.testing.assert_allclose(found[0], exact, rtol=BOUND)
    assert not found[1].any()


OPTIMIZERS = {cls.kind: cls for cls in config.variants(OptimizerConfig)}


def constant_slope(params, batch, frozen):
    """A loss whose gradient is the batch's mean everywhere."""
    loss = sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(params)) * batch["x"].sum()
    return Sums(loss, jnp.float32(batch["x"].size), {"loss": loss})


def walked(kind: str, dtype: str, steps: int, decay: float | None = None):
    """Ones under ``steps`` small steps of an optimizer."""
    options = {"lr": 1e-4, "weight_decay": 0.0, "schedule": Constant()}
    if kind == "adafactor":
        options["scale_by_parameter"] = False
    axes = {"w": {"kernel": ("embed", "mlp")}}
    optimizer = build_optimizer(OPTIMIZERS[kind](**options), total_steps=steps, axes=axes)
    layout = build(MeshConfig(), jax.devices()[:1])
    step = jax.jit(build_step(constant_slope, optimizer, layout, accumulate=2, ema_decay=decay))
    params = {"w": {"kernel": jnp.ones((4, 4), dtype)}}
    zero = jnp.zeros((), jnp.int32)
    average = None if decay is None else jax.tree.map(lambda x: x.astype(jnp.float32), params)
    state = TrainState(params, optimizer.transform.init(params), zero, zero, zero, average)
    for _ in range(steps):
        state, _ = step(state, {"x": jnp.ones(4, jnp.float32)})
    return state


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_small_steps_add_up(kind):
    """Forty steps that bfloat16 cannot tell from none move its parameters as far as float32's."""
    narrow, wide = walked(kind, "bfloat16", 40), walked(kind, "float32", 40)
    master = narrow.optimizer.weights["w"]["kernel"]
    moved = 1.0 - np.asarray(wide.params["w"]["kernel"])
    assert (moved > 0.0002).all()
    np.testing.assert_allclose(1.0 - np.asarray(master), moved, rtol=1e-3, atol=1e-6)
    # and the parameters are the copies, rounded, bit for bit
    rounded = np.asarray(master.astype(jnp.bfloat16), np.float32)
    assert (np.asarray(narrow.params["w"]["kernel"], np.float32) == rounded).all()
    # float32 has no second copy
    assert not isinstance(wide.optimizer, MasterState)
    floats = [x for x in jax.tree.leaves(narrow.optimizer) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


def test_the_average_moves_in_float32():
    state = walked("sgd", "bfloat16", 30, decay=0.999)
    average = np.asarray(state.average["w"]["kernel"])
    assert average.dtype == np.float32
    assert 0.99 < average.min() <= average.max() < 1.0
    assert state.evaluated["w"]["kernel"].dtype == jnp.bfloat16


def test_copies_are_sharded_like_their_parameters_and_counted():
    model = LanguageModel.build(families()["llama"], Precision("bfloat16", "bfloat16"))
    optimizer = build_optimizer(OPTIMIZERS["adamw"](lr=1e-3), total_steps=1, axes=model.axes)
    layout = build(MeshConfig(fsdp=4, data=2), jax.devices()[:8])
    state = abstract_state(model, optimizer, layout, averaged=True)
    for tree in (state.optimizer.weights, state.average):
        places = jax.tree.map(lambda w, p: w.sharding == p.sharding, tree, state.params)
        assert all(jax.tree.leaves(places))
    count = sum(x.size for x in jax.tree.leaves(state.params))
    assert (size_bytes(state.params), size_bytes(state.average)) == (2 * count, 4 * count)
    assert size_bytes(state.optimizer) - 4 * 3 * count < 64  # copies, two moments, counters
