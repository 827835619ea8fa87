"""The moving average of the parameters, whatever the objective."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ziggurat.mesh import MeshConfig, build
from ziggurat.optim import Optimizer
from ziggurat.train.state import TrainState
from ziggurat.train.step import Sums, build_step


def downhill() -> Optimizer:
    """One down for every step."""

    def update(updates, state, params=None, **_):
        return jax.tree.map(lambda g: -jnp.ones_like(g), updates), state

    transform = optax.GradientTransformationExtraArgs(lambda params: (), update)
    return Optimizer(transform, lambda step: 0.0, ())


def test_the_average_follows_and_a_skipped_step_leaves_it():
    """``a + (1 - min(d, (1 + s) / (10 + s))) (p - a)`` after the ``s``-th update."""

    def objective(params, batch, frozen):
        loss = jnp.sum(params["w"] * batch["x"])
        return Sums(loss, jnp.float32(1), {"loss": loss})

    layout = build(MeshConfig(), jax.devices()[:1])
    step = jax.jit(build_step(objective, downhill(), layout, ema_decay=0.3))
    zero, start = jnp.zeros((), jnp.int32), {"w": jnp.float32(10)}
    state = TrainState(start, (), zero, zero, zero, start)
    weight, average, updates = 10.0, 10.0, 0
    for x in (1.0, 1.0, np.nan, 1.0, 1.0, 1.0):
        state, _ = step(state, {"x": jnp.float32([x])})
        if np.isfinite(x):
            weight, updates = weight - 1, updates + 1
            average += (1 - min(0.3, (1 + updates) / (10 + updates))) * (weight - average)
        assert float(state.params["w"]) == weight
        np.testing.assert_allclose(state.average["w"], average, rtol=1e-6)
    assert state.evaluated is state.average
    assert int(state.skipped) == 1
