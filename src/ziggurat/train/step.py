"""The training step: ``(state, batch) -> (state, metrics)``, pure, jitted and donated."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.optim import Optimizer, global_norm, master_weights
from ziggurat.optim.master_weights import widened
from ziggurat.train.state import TrainState

Arrays = Mapping[str, jax.Array]


class Sums(NamedTuple):
    """Loss and metrics of some rows as sums, so that micro-batches can be added up."""

    loss: Float[Array, ""]
    """To be differentiated."""
    weight: Float[Array, ""]
    """Divisor of all sums over the whole step."""
    metrics: dict[str, Float[Array, ""]]
    """Sums for reports."""
    loads: dict[str, Float[Array, "l e"]] = {}  # noqa: RUF012  nobody changes it
    """Tokens sent to each expert, by stack of layers."""


Objective = Callable[[Params, Arrays, Params], Sums]
"""``(params, batch, frozen) -> Sums``; ``frozen`` are arrays that are read and not trained."""
Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
"""``(state, batch, frozen) -> (state, metrics)``."""


def build_step(
    objective: Objective,
    optimizer: Optimizer,
    layout: Layout,
    *,
    accumulate: int = 1,
    router_bias_rate: float = 0.0,
    ema_decay: float | None = None,
) -> Step:
    r"""Build the training step of an objective and an optimizer.

    The gradient is :math:`\sum_m \nabla L_m / \sum_m w_m` over micro-batches :math:`m`, exactly
    that of the undivided batch however unevenly the weights :math:`w` are spread; sums are float32,
    whatever the type of the parameters. A step whose loss or gradient norm is not finite leaves
    parameters and optimizer as they were and is counted.

    Args:
        objective: sums over rows.
        optimizer: how gradients become updates.
        layout: where activations live while tracing.
        accumulate: number of micro-batches; divides the batch.
        router_bias_rate: how far the correcting biases of routers move against experts' loads.
        ema_decay: share of the state's average that a step leaves, if it has one.

    Returns:
        A pure function; jit it, donating the state. Metrics: ``loss`` and the objective's others
        per unit of weight, ``grad_norm``, ``target_tokens``, ``skipped_steps``,
        ``bad_steps_in_a_row``, and ``learning_rate`` where the optimizer has a schedule.
    """

    def step(
        state: TrainState, batch: Arrays, frozen: Params | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def differentiated(params: Params, batch: Arrays) -> tuple[Any, Sums]:
            sums = objective(params, batch, frozen or {})
            return sums.loss, sums

        with layout.active():
            gradient = jax.grad(differentiated, has_aux=True)
            if accumulate == 1:
                gradients, sums = gradient(state.params, batch)
            else:
                gradients, sums = _accumulated(gradient, state.params, batch, accumulate)
            scale = 1.0 / jnp.maximum(sums.weight, 1.0)
            gradients = jax.tree.map(lambda g: widened(g) * scale, gradients)
            norm = global_norm(gradients)
            with jax.named_scope("optimizer"):
                new = _update(optimizer, state, gradients, norm, jnp.isfinite(sums.loss))
                if router_bias_rate:
                    new = _balanced(new, sums.loads, router_bias_rate)
                if ema_decay is not None:
                    new = _averaged(new, ema_decay)
        metrics = {name: value * scale for name, value in sums.metrics.items()}
        metrics |= {
            "grad_norm": norm,
            "target_tokens": sums.weight,
            "skipped_steps": new.skipped,
            "bad_steps_in_a_row": new.bad_in_a_row,
        }
        if optimizer.schedule is not None:
            metrics["learning_rate"] = jnp.asarray(optimizer.schedule(state.step - state.skipped))
        return new, metrics

    return step


def build_evaluation(
    objective: Objective, layout: Layout
) -> Callable[[Params, Arrays, Params], Sums]:
    """Build the evaluation of a batch: the objective's sums without gradients, to be jitted."""

    def evaluate(params: Params, batch: Arrays, frozen: Params) -> Sums:
        with layout.active():
            return objective(params, batch, frozen)

    return evaluate


def _accumulated(
    gradient: PyTree, params: Params, batch: Arrays, parts: int
) -> tuple[Params, Sums]:
    """Gradients and sums added over micro-batches, in float32; rows are dealt out in turn, so that
    each device keeps the rows it has."""
    micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), dict(batch))

    def add(total: PyTree, part: Arrays) -> tuple[PyTree, None]:
        return jax.tree.map(lambda t, g: t + widened(g), total, gradient(params, part)), None

    first = jax.tree.map(lambda x: x[0], micro)
    shapes = jax.eval_shape(lambda *a: jax.tree.map(widened, gradient(*a)), params, first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zero, micro)[0]


def _update(
    optimizer: Optimizer, state: TrainState, gradients: Params, norm: jax.Array, fine: jax.Array
) -> TrainState:
    fine = fine & jnp.isfinite(norm)
    updates, moments = optimizer.transform.update(
        gradients, state.optimizer, state.params, grad_norm=norm
    )
    params = master_weights.applied(state.params, updates, moments)

    def keep(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)

    bad = jnp.logical_not(fine).astype(jnp.int32)
    return TrainState(
        params=keep(params, state.params),
        optimizer=keep(moments, state.optimizer),
        step=state.step + 1,
        skipped=state.skipped + bad,
        bad_in_a_row=jnp.where(fine, 0, state.bad_in_a_row + 1),
        average=state.average,
    )


def _averaged(state: TrainState, decay: float) -> TrainState:
    r"""The average moved towards the new parameters by :math:`1 - \min(d, (1 + s) / (10 + s))` at
    the ``s``-th update, so that it forgets where it began; left as it is by a skipped step. It is
    float32 whatever the type of the parameters: a rate of 0.001 is less than bfloat16 can tell."""
    updates = (state.step - state.skipped).astype(jnp.float32)
    rate = 1.0 - jnp.minimum(decay, (1.0 + updates) / (10.0 + updates))
    rate = jnp.where(state.bad_in_a_row == 0, rate, 0.0)

    def moved(average: jax.Array, new: jax.Array) -> jax.Array:
        return average + rate * (new.astype(jnp.float32) - average)

    new = master_weights.exact(state.params, state.optimizer)
    return dataclasses.replace(state, average=jax.tree.map(moved, state.average, new))


def _balanced(state: TrainState, loads: Mapping[str, jax.Array], rate: float) -> TrainState:
    """Biases of routers moved up for experts with less than the mean load, down for those with
    more, by ``rate`` whatever the difference (Wang et al. 2024,
    https://arxiv.org/abs/2408.15664)."""
    moved = {}
    for stack, counts in loads.items():
        name = f"{stack}.mlp.router.correction_bias"
        moved[name] = rate * jnp.sign(counts.mean(-1, keepdims=True) - counts)
    moved = {name: jnp.where(state.bad_in_a_row == 0, by, 0) for name, by in moved.items()}
    params, moments = master_weights.shifted(state.params, state.optimizer, moved)
    return dataclasses.replace(state, params=params, optimizer=moments)
