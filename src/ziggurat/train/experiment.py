"""From a run file to the parts of a run: everything the loop needs, built once, then fixed."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat import data as data_
from ziggurat import mesh as mesh_
from ziggurat import optim
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.core.protocols import Batch
from ziggurat.data import Dataset, HuggingFaceTokenizer, PackedDataset
from ziggurat.mesh import Layout, Processes
from ziggurat.models import LanguageModel, Params, pretrained
from ziggurat.nn.precision import Precision
from ziggurat.train.config import PretrainedModel, RunConfig, TrainConfig
from ziggurat.train.objectives.lm import language_modelling
from ziggurat.train.state import TrainState, abstract_state, initial_state
from ziggurat.train.step import Step, build_evaluation, build_step

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run."""

    run: RunConfig
    layout: Layout
    model: LanguageModel
    tokenizer: HuggingFaceTokenizer
    data: Dataset
    eval_data: PackedDataset | None
    optimizer: optim.Optimizer
    abstract: TrainState
    """Shapes, types and shardings of the state."""
    step: Step
    """Jitted; donates the state."""
    evaluate: Callable[..., Any]
    """Jitted sums over a batch."""
    initial: Callable[[], TrainState]
    """The state before the first step."""

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """A host's rows as global arrays on the mesh."""
        sharding = self.layout.sharding(("batch", "sequence"))
        first = local_rows(self.layout, self.data.batch_size).start

        def one(rows: np.ndarray) -> jax.Array:
            shape = (self.data.batch_size, *rows.shape[1:])

            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(shape[0])
                return rows[(slice(start - first, stop - first), *index[1:])]

            return jax.make_array_from_callback(shape, sharding, part)

        return {name: one(rows) for name, rows in batch.items()}

    def batch_struct(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a batch, for compiling ahead."""
        return batch_struct(self.layout, self.data.batch_size, self.data.sequence_length)


def prepare(run: RunConfig, devices: Sequence[Any] | None = None) -> Experiment:
    """Build all parts; reads and tokenises the data, traces the model, compiles nothing.

    Args:
        run: the run file.
        devices: devices of the mesh, by default all.

    Raises:
        ConfigError: parts do not fit together (vocabulary, batch and mesh).
        DataError, ModelError, ShardingError: as the parts say.
    """
    layout = mesh_.build(run.mesh, devices)
    check_mesh(run, layout)
    start = load_start(run)
    tokenizer = _first_alone("tokenizer", lambda: _tokenizer(run, start))
    model = LanguageModel.build(
        run.model if start is None else start.model.config,  # pyright: ignore[reportArgumentType]
        precision(run.train, layout),
        run.train.remat,
        run.train.attention,
    )
    check_vocabulary(tokenizer.vocab_size, model)
    training, held_out = _first_alone("data", lambda: _data(run, tokenizer))
    if training.steps is not None and training.steps < run.train.steps:
        raise ConfigError(
            "train.steps",
            found=run.train.steps,
            expected=f"at most {training.steps}, what {run.data.epochs} epochs hold",
            fix="raise data.epochs, or leave it out to repeat the data",
        )
    return assemble(
        run, layout, model, tokenizer, training, held_out, start.params if start else None
    )


def assemble(
    run: RunConfig,
    layout: Layout,
    model: LanguageModel,
    tokenizer: HuggingFaceTokenizer,
    training: Dataset,
    held_out: PackedDataset | None,
    params: Params | None = None,
) -> Experiment:
    """Join built parts: objective, optimizer, step and evaluation."""
    optimizer, step, evaluate = compiled_parts(run, layout, model)
    abstract = abstract_state(model, optimizer, layout)

    def initial() -> TrainState:
        return initial_state(model, optimizer, abstract, run.seed, params)

    return Experiment(
        run=run,
        layout=layout,
        model=model,
        tokenizer=tokenizer,
        data=training,
        eval_data=held_out,
        optimizer=optimizer,
        abstract=abstract,
        step=step,
        evaluate=evaluate,
        initial=initial,
    )


def compiled_parts(
    run: RunConfig, layout: Layout, model: LanguageModel
) -> tuple[optim.Optimizer, Any, Any]:
    """Optimizer, jitted step and jitted evaluation; also what ahead-of-time compilation needs."""
    if layout.sizes["expert"] > 1 and not model.has_experts:
        raise ShardingError(
            "mesh.expert",
            found=layout.sizes["expert"],
            expected="1 for a model without experts",
            fix="use the devices on another axis, e.g. fsdp or data",
        )
    objective = language_modelling(model, run.objective.loss, layout)
    optimizer = optim.build(run.optimizer, total_steps=run.train.steps, axes=model.axes)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(model, optimizer, layout))
    step = jax.jit(
        build_step(
            objective,
            optimizer,
            layout,
            accumulate=run.train.accumulate,
            router_bias_rate=run.objective.loss.router_bias_rate,
        ),
        donate_argnums=0,
        out_shardings=(shardings, layout.replicated()),
    )
    return optimizer, step, jax.jit(build_evaluation(objective, layout))


def batch_struct(layout: Layout, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a language-model batch."""
    sharding = layout.sharding(("batch", "sequence"))
    integers = ("tokens", "targets", "segment_ids", "positions")
    types = {**dict.fromkeys(integers, jnp.int32), "loss_mask": jnp.float32}
    return {
        name: jax.ShapeDtypeStruct((batch, length), dtype, sharding=sharding)
        for name, dtype in types.items()
    }


def precision(train: TrainConfig, layout: Layout) -> Precision:
    """Parameter and compute types of a run on its devices."""
    on_cpu = layout.mesh.devices.flat[0].platform == "cpu"
    auto = "float32" if on_cpu else "bfloat16"
    return Precision(train.param_dtype, auto if train.precision == "auto" else train.precision)


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
    layout.require_divides("a row", {"sequence": run.data.sequence_length})


def check_vocabulary(tokens: int, model: LanguageModel) -> None:
    """Refuse a tokenizer whose ids the model has no rows for.

    Raises:
        ConfigError: the tokenizer has more ids than the model.
    """
    if tokens > model.decoder.vocab_size:
        raise ConfigError(
            "model.vocab_size",
            found=model.decoder.vocab_size,
            expected=f"at least {tokens}, the ids of the tokenizer",
            fix="raise model.vocab_size or lower tokenizer.vocab_size",
        )


def load_start(run: RunConfig) -> "pretrained.Pretrained | None":
    """The weights a run starts from, if it names any."""
    if isinstance(run.model, PretrainedModel):
        return pretrained.load(run.model.path)
    return None


def _first_alone(what: str, make: Callable[[], Any]) -> Any:
    """What ``make`` returns; the first process fills the cache before the others look into it."""
    made: list[Any] = []
    Processes().once(f"prepare {what}", lambda: made.append(make()))
    return made[0] if made else make()


def _data(run: RunConfig, tokenizer: HuggingFaceTokenizer) -> tuple[Dataset, PackedDataset | None]:
    cache = run.output / "cache"
    training = data_.build(run.data, tokenizer, run.seed, cache)
    if not run.data.eval_fraction:
        return training, None
    held_out = data_.build(run.data, tokenizer, run.seed, cache, "eval")
    assert isinstance(held_out, PackedDataset), "a stream holds nothing out"
    return training, held_out


def _tokenizer(run: RunConfig, start: "pretrained.Pretrained | None") -> HuggingFaceTokenizer:
    if run.tokenizer is not None:
        return data_.tokenizer_for(run.tokenizer, run.data, run.output / "cache")
    if start is None:
        raise ConfigError(
            "tokenizer",
            found="nothing",
            expected="a [tokenizer] table, since the model is new",
            fix='e.g. kind = "train_bpe"',
        )
    return start.tokenizer
