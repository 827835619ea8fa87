"""Training state that a step passes to the next."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ziggurat.core import prng
from ziggurat.core.pytrees import Leaf, map_named
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.models.language_model import PARAMS
from ziggurat.models.loading.step_files import AVERAGE
from ziggurat.optim import Optimizer, state_axes
from ziggurat.optim.master_weights import widened
from ziggurat.train.trainable import Trainable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state and counters; a pytree, donated to each step.

    Its leaves are arrays, or shapes or shardings in trees of the same form.
    """

    params: Params
    optimizer: PyTree
    step: Any
    """int32 scalar: finished steps, skipped ones included."""
    skipped: Any
    """int32 scalar: steps whose update was left out because loss or gradient was not finite."""
    bad_in_a_row: Any
    """int32 scalar: how many such steps came last."""
    average: PyTree = None
    """Moving average of the parameters, float32, where the run keeps one; else None, for which
    ``jax.jit`` has a mark of its own in trees of shardings."""

    @property
    def evaluated(self) -> Params:
        """Parameters to evaluate and sample from: the average if there is one, rounded to their
        type."""
        if self.average is None:
            return self.params
        pairs = zip(jax.tree.leaves(self.average), jax.tree.leaves(self.params), strict=True)
        if all(mean.dtype == own.dtype for mean, own in pairs):
            return self.average
        return jax.tree.map(lambda mean, own: mean.astype(own.dtype), self.average, self.params)

    @property
    def arrays(self) -> dict[str, PyTree]:
        """The state as the named items of a checkpoint."""
        average = {} if self.average is None else {AVERAGE: self.average}
        return {PARAMS: self.params, "optimizer": self.optimizer} | average


def abstract_state(
    model: Trainable, optimizer: Optimizer, layout: Layout, *, averaged: bool = False
) -> TrainState:
    """Shapes, types and shardings of the whole training state; allocates nothing.

    Optimizer moments, master weights and the average are sharded like the parameters they belong
    to.

    Raises:
        ShardingError: a dimension does not divide over the mesh.
    """
    moments = jax.eval_shape(optimizer.transform.init, model.abstract)

    def place(shardings: PyTree, abstract: PyTree) -> PyTree:
        def one(sharding: Leaf, leaf: Leaf) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(one, shardings, abstract)

    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.replicated())
    params = place(model.shardings(layout), model.abstract)
    return TrainState(
        params=params,
        optimizer=place(layout.tree(state_axes(moments, model.axes), moments), moments),
        step=counter,
        skipped=counter,
        bad_in_a_row=counter,
        average=jax.tree.map(_float32, params) if averaged else None,
    )


def _float32(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)


def initial_state(
    model: Trainable,
    optimizer: Optimizer,
    abstract: TrainState,
    seed: int,
    params: Params | None = None,
) -> TrainState:
    """A state before the first step, created in its shardings.

    Args:
        model: the model.
        optimizer: its optimizer.
        abstract: from :func:`abstract_state`.
        seed: the run's seed; initial weights are its stream ``"init"``.
        params: trained weights to start from instead.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def make(given: Params | None) -> TrainState:
        fresh = model.init(prng.stream(seed, "init")) if given is None else given
        zero = jnp.zeros((), jnp.int32)
        moments = optimizer.transform.init(fresh)
        average = None if abstract.average is None else jax.tree.map(widened, fresh)
        return TrainState(fresh, moments, zero, zero, zero, average)

    if params is not None:
        params = map_named(
            lambda _, leaf, like: jax.device_put(jnp.asarray(leaf, like.dtype), like.sharding),
            params,
            abstract.params,
        )
    on_cpu = next(iter(abstract.step.sharding.device_set)).platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None  # runs once: compile fast
    return jax.jit(make, out_shardings=shardings, compiler_options=options)(params)
