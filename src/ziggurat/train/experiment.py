"""From a run file to the parts of a run: everything the loop needs, built once, then fixed."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from ziggurat import mesh as mesh_
from ziggurat import optim
from ziggurat.core.errors import ConfigError, DataError, ShardingError
from ziggurat.core.protocols import Batch, Device
from ziggurat.mesh import Layout
from ziggurat.train.config import FromPython, RunConfig
from ziggurat.train.parts import Parts, Trainable, TrainingData, TrainingProgram, kind_of
from ziggurat.train.quantized import recorded, trained_sums
from ziggurat.train.state import TrainState, abstract_state, initial_state
from ziggurat.train.step import Step, build_evaluation, build_step
from ziggurat.train.supplied import Supplied

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run, compiled for its devices."""

    run: RunConfig
    layout: Layout
    parts: Parts
    optimizer: optim.Optimizer
    abstract: TrainState
    """Shapes, types and shardings of the state."""
    step: Step
    """Jitted; donates the state."""
    evaluate: Callable[..., Any]
    """Jitted sums over a batch."""
    initial: Callable[[], TrainState]
    """The state before the first step."""

    @property
    def model(self) -> Trainable:
        return self.parts.program.model

    @property
    def data(self) -> TrainingData:
        return self.parts.data

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """A host's rows as global arrays on the mesh.

        Raises:
            DataError: an id, position or class is beyond the table in which it is looked up.
        """
        check_indices(batch, self.model.index_limits)
        structs = self.batch_struct()
        return {name: self._place(rows, structs[name]) for name, rows in batch.items()}

    def _place(self, rows: np.ndarray, struct: jax.ShapeDtypeStruct) -> jax.Array:
        first = local_rows(self.layout, struct.shape[0]).start

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(struct.shape[0])
            return rows[(slice(start - first, stop - first), *index[1:])]

        assert struct.sharding is not None
        return jax.make_array_from_callback(struct.shape, struct.sharding, part)

    def batch_struct(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a batch, for compiling ahead."""
        return self.parts.program.batch


def prepare(
    run: RunConfig, devices: Sequence[Device] | None = None, supplied: Supplied | None = None
) -> Experiment:
    """Build all parts; reads and tokenises the data, traces the model, compiles nothing.

    Args:
        run: the run file.
        devices: devices of the mesh, by default all.
        supplied: objects in place of tables of the run file.

    Raises:
        ConfigError: parts do not fit together (vocabulary, batch and mesh).
        DataError, ModelError, ShardingError: as the parts say.
    """
    layout = mesh_.build(run.mesh, devices)
    check_mesh(run, layout)
    supplied = supplied or Supplied()
    supplied.check(run)
    kind = supplied.objective or kind_of(run)
    if supplied.data is not None and not kind.streams:
        raise ConfigError(
            "data",
            found="a source of batches given in Python",
            expected=f"a [data] table, for objective.kind = {run.objective.kind}",
        )
    parts = recorded(run, kind.parts(run, layout, supplied.data))
    if parts.data.steps is not None and parts.data.steps < run.train.steps:
        raise ConfigError(
            "train.steps",
            found=run.train.steps,
            expected=f"at most {parts.data.steps}, what the data's epochs hold",
            fix="raise data.epochs, or leave it out to repeat the data",
        )
    return assemble(run, layout, parts, supplied.optimizer)


def assemble(
    run: RunConfig,
    layout: Layout,
    parts: Parts,
    transform: optax.GradientTransformation | None = None,
) -> Experiment:
    """Build the experiment of an objective's parts: optimizer, compiled step and evaluation."""
    model = parts.program.model
    optimizer, step, evaluate = compiled_parts(run, layout, parts.program, transform)
    abstract = abstract_state(model, optimizer, layout, averaged=run.train.ema_decay is not None)

    def initial() -> TrainState:
        return initial_state(model, optimizer, abstract, run.seed, parts.start)

    return Experiment(run, layout, parts, optimizer, abstract, step, evaluate, initial)


def compiled_parts(
    run: RunConfig,
    layout: Layout,
    program: TrainingProgram,
    transform: optax.GradientTransformation | None = None,
) -> tuple[optim.Optimizer, PyTree, PyTree]:
    """Optimizer, jitted step and jitted evaluation; also what ahead-of-time compilation needs.

    Args:
        run: the run file.
        layout: the devices.
        program: what the objective compiles.
        transform: the optimizer, in place of that of the run file.

    Raises:
        ConfigError: the run's optimizer was an object of a Python caller, and none is given.
        ShardingError: the mesh has an axis for experts and the model has none.
    """
    model, sums = program.model, trained_sums(run, program)
    if layout.sizes["expert"] > 1 and not model.has_experts:
        raise ShardingError(
            "mesh.expert",
            found=layout.sizes["expert"],
            expected="1 for a model without experts",
            fix="use the devices on another axis, e.g. fsdp or data",
        )
    optimizer = _optimizer(run, model, transform)
    decay = run.train.ema_decay
    abstract = abstract_state(model, optimizer, layout, averaged=decay is not None)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    step = jax.jit(
        build_step(
            sums,
            optimizer,
            layout,
            accumulate=run.train.accumulate,
            router_bias_rate=program.router_bias_rate,
            ema_decay=decay,
        ),
        donate_argnums=0,
        out_shardings=(shardings, layout.replicated()),
    )
    return optimizer, step, jax.jit(build_evaluation(sums, layout))


def _optimizer(
    run: RunConfig, model: Trainable, transform: optax.GradientTransformation | None
) -> optim.Optimizer:
    if transform is not None:
        return optim.from_optax(transform, model.axes)
    if isinstance(run.optimizer, FromPython):
        raise ConfigError(
            "optimizer.kind", found="'python'", expected="an optimizer of the run file"
        )
    return optim.build(run.optimizer, total_steps=run.train.steps, axes=model.axes)


def check_indices(batch: Batch, limits: Mapping[str, int]) -> None:
    """Refuse rows that hold an id, position or class beyond the table in which it is looked up.

    Args:
        batch: rows on the host.
        limits: as ``Trainable.index_limits``.

    Raises:
        DataError: the array, the value and its row.
    """
    for name, rows in batch.items():
        limit = next((limits[end] for end in limits if f"_{name}".endswith(f"_{end}")), None)
        if limit is None or not rows.size:
            continue
        # one pass: a negative number is a large one without its sign
        largest = rows.reshape(len(rows), -1).view(np.uint32 if rows.itemsize == 4 else np.uint64)
        if largest.max() >= limit:
            row = int(np.argmax((largest >= limit).any(axis=1)))
            found = rows[row].reshape(-1)[int(np.argmax(largest[row] >= limit))]
            raise DataError(
                f"batch: {name}",
                found=f"{found} in row {row}",
                expected=f"0 to {limit - 1}, the rows of the model's table",
                fix="look at what makes the data, or give the model a larger table",
            )


def local_rows(layout: Layout, batch_size: int) -> slice:
    """The rows of the global batch that this process's devices hold."""
    sharding = layout.sharding(("batch",))
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    ranges = [part[0].indices(batch_size) for part in parts if part is not None]
    return slice(min(r[0] for r in ranges), max(r[1] for r in ranges))


def check_mesh(run: RunConfig, layout: Layout) -> None:
    """Refuse meshes that the run cannot use.

    Raises:
        ShardingError: batch or sequence does not divide; or there are pipeline stages.
    """
    if layout.sizes["pipeline"] > 1:
        raise ShardingError(
            "mesh.pipeline",
            found=layout.sizes["pipeline"],
            expected="1",
            fix="pipeline stages are not implemented",
        )
    micro = {"batch": run.data.batch_size // run.train.accumulate}
    if run.data.batch_size % run.train.accumulate:
        raise ConfigError(
            "train.accumulate",
            found=run.train.accumulate,
            expected=f"a divisor of data.batch_size = {run.data.batch_size}",
        )
    layout.require_divides("a micro-batch", micro)
    if run.row_tokens is not None:
        layout.require_divides("a row", {"sequence": run.row_tokens})
