"""Interface between the one training loop and the kinds of objective.

The run file's ``[objective]`` names a kind; an :class:`ObjectiveKind` turns run and mesh into a
:class:`TrainingProgram` (what is compiled; reads no data) and :class:`Parts` (what is trained, and
on what). They are registered in ``ziggurat.train.registries.OBJECTIVES``; those of this package are
in ``train.objectives``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import jax

from ziggurat.core.json_types import JsonMapping
from ziggurat.core.protocols import Batch, BatchSource
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.train.config import RunConfig
from ziggurat.train.registries import OBJECTIVES
from ziggurat.train.step import Objective
from ziggurat.train.trainable import Trainable


@runtime_checkable
class TrainingData(BatchSource, Protocol):
    """Interface of training data: batches by step, with a state from which they resume."""

    @property
    def sequence_length(self) -> int:
        """Tokens of a row, used to count throughput."""
        ...

    @property
    def steps(self) -> int | None:
        """Steps until the data ends; ``None`` if it never ends."""
        ...

    @property
    def steps_per_epoch(self) -> int | None: ...

    def check_state(self, state: JsonMapping) -> int:
        """Compare a stored state with this data; returns the step that comes next.

        Raises:
            DataError: it was stored of other data.
        """
        ...


@runtime_checkable
class Rollout(Protocol):
    """Interface of a sampler: makes a step's batch from its prompts and the current parameters.

    The draws must follow from (seed, step, row), so that a run resumed at this step makes the same
    batch again.
    """

    def __call__(self, params: Params, batch: Batch, step: int) -> tuple[Batch, dict[str, float]]:
        """Rows of the training batch, as ``TrainingProgram.batch`` describes them, and figures to
        record.

        Args:
            params: the trained parameters; valid until the call returns.
            batch: this process's rows of the data's batch.
            step: the step they are for, from 0.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingProgram:
    """Loss, shapes and shardings from which a run's step is compiled; holds no arrays."""

    model: Trainable
    sums: Objective
    """``(params, batch, frozen) -> Sums``."""
    batch: Mapping[str, jax.ShapeDtypeStruct]
    """Global shapes, types and shardings of a step's batch; rows come first."""
    frozen: Params = dataclasses.field(default_factory=dict)
    """Shapes and shardings of frozen arrays: a reference policy, a teacher, the base of an
    adapter."""
    frozen_axes: Params = dataclasses.field(default_factory=dict)
    """Logical axis names of ``frozen``, tuples as leaves."""
    router_bias_rate: float = 0.0
    """See ``train.step.build_step``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Model, parameters and data of a run."""

    program: TrainingProgram
    data: TrainingData
    files: Mapping[str, bytes | Path]
    """Files of every checkpoint besides arrays, with which it can be read alone."""
    start: Params | None = None
    """Parameters to start from; fresh ones if not given."""
    frozen: Params = dataclasses.field(default_factory=dict)
    """Arrays of ``program.frozen``, in their places. Of these a checkpoint holds ``kept``."""
    kept: Params = dataclasses.field(default_factory=dict)
    """Frozen arrays that every checkpoint holds too, as its item ``frozen``: parts of the model
    that are not trained."""
    tokenizer: HuggingFaceTokenizer | None = None
    eval_data: TrainingData | None = None
    """Held-out batches, of which the first are evaluated."""
    perplexity: bool = False
    """Whether the loss is in nats a token, so that its exponential is a perplexity."""
    rollout: Rollout | None = None
    evaluate: Callable[[Params], dict[str, float]] | None = None
    """Evaluation that is more than the mean over ``eval_data``; figures by name (``eval_...``)."""
    pretrained: Callable[[Params], Pretrained] | None = None
    """The language model that trained parameters stand for, ready to generate."""


@runtime_checkable
class ObjectiveKind(Protocol):
    """Base class of an objective kind; its attributes have defaults."""

    node: ClassVar[type]
    """Node of the run file, ``[objective]``."""
    adapted: ClassVar[bool] = False
    """Whether it trains adapters if asked to."""
    streams: ClassVar[bool] = False
    """Whether it learns from batches of any source, which ``parts`` then takes as ``data``."""
    quantized: ClassVar[bool] = False
    """Whether it trains weights for a quantised format if asked to."""
    images: ClassVar[bool] = False
    """Whether it learns from images; all others learn from text."""

    def program(self, run: RunConfig, layout: Layout) -> TrainingProgram:
        """Build the program to compile, from the run file alone.

        Raises:
            ConfigError: the run cannot be compiled without reading weights or data.
        """
        ...

    def parts(self, run: RunConfig, layout: Layout, data: TrainingData | None = None) -> Parts:
        """Build a run's program and data; reads weights and data.

        Args:
            run: the run file.
            layout: the devices.
            data: batches to train on, in place of those of ``[data]``.

        Raises:
            ConfigError: parts of the run do not fit together.
            DataError, ModelError, ShardingError: as the parts say.
        """
        ...


def kind_of(run: RunConfig) -> ObjectiveKind:
    """Look up the objective kind that a run names.

    Raises:
        ConfigError: there is none of that name.
    """
    return OBJECTIVES[run.objective.kind]()
