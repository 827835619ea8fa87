"""Parts of a run that a Python caller gives as objects, in place of tables of the run file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import optax

from ziggurat.core.errors import ConfigError
from ziggurat.core.protocols import MetricSink
from ziggurat.train.config import PYTHON, RunConfig
from ziggurat.train.parts import ObjectiveKind, TrainingData


@runtime_checkable
class Callback(Protocol):
    """Interface of a callback of the training loop, called on every process; inherit from it for
    methods that do nothing.

    An exception ends the run as a failure of its own.
    """

    def on_start(self, run: RunConfig, step: int) -> None:
        """Called before the first step; ``step`` is that of the checkpoint it resumes from, else
        0."""

    def on_step(self, step: int, metrics: Mapping[str, float]) -> bool | None:
        """Called after a step, counted from 0.

        Returns:
            True to end the run now: it is saved, and can be resumed. All processes must agree.
        """

    def on_save(self, step: int) -> None:
        """Called after a checkpoint of ``step`` finished steps was handed to the background
        writer."""

    def on_end(self, step: int, status: str) -> None:
        """Called after the last step, with everything saved.

        Args:
            step: finished steps.
            status: ``finished``, or why the run ended early.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supplied:
    """Optimizer, data, objective, sinks and callbacks that a Python caller gives instead of, or
    beside, the run file's."""

    optimizer: optax.GradientTransformation | None = None
    """In place of ``[optimizer]``."""
    data: TrainingData | None = None
    """In place of ``[data]``."""
    objective: ObjectiveKind | None = None
    """In place of ``[objective]``."""
    sinks: Sequence[MetricSink] = ()
    """Beside ``metrics.jsonl`` and the sinks that the run file names."""
    callbacks: Sequence[Callback] = ()
    """Beside the callbacks that the run file names."""

    def check(self, run: RunConfig) -> None:
        """Refuse a run whose tables and objects do not match.

        Raises:
            ConfigError: the run was made with an object that is not given here, or has a table for
                one that is.
        """
        for name in ("optimizer", "data", "objective"):
            given, kind = getattr(self, name) is not None, getattr(run, name).kind
            if kind == PYTHON and not given:
                raise ConfigError(
                    f"{name}.kind",
                    found=f"{PYTHON!r} and no object",
                    expected=f"the {name} with which the run began, as an object",
                    fix=f"call ziggurat.train(run, {name}=...)",
                )
            if given and kind != PYTHON:
                raise ConfigError(f"{name}.kind", found=repr(kind), expected=f"{PYTHON!r}")
