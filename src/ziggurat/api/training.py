"""``ziggurat.train``: a run file, with Python objects in place of its tables where wanted."""

import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optax
from rich.console import Console

from ziggurat import data as data_
from ziggurat.core import config
from ziggurat.core.config import Resolved
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.core.protocols import MetricSink
from ziggurat.mesh import Processes
from ziggurat.train import recipes
from ziggurat.train.config import PYTHON, RunConfig
from ziggurat.train.derived import attempt, context_length, sample_tokens
from ziggurat.train.loop import train as train_loop
from ziggurat.train.outcome import TrainingOutcome
from ziggurat.train.parts import ObjectiveKind, TrainingData
from ziggurat.train.report import Picture, Sample
from ziggurat.train.summary import report
from ziggurat.train.supplied import Callback, Supplied

_log = logging.getLogger(__name__)


def train(
    run: str | Path | JsonMapping | RunConfig | Resolved[RunConfig],
    *,
    overrides: Sequence[str] = (),
    optimizer: optax.GradientTransformation | None = None,
    data: TrainingData | Any = None,
    objective: ObjectiveKind | None = None,
    sinks: Sequence[MetricSink] = (),
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> TrainingOutcome:
    """Train a model to the end of its run, from the newest checkpoint if there is one.

    An object given in place of a table is recorded in the run file as ``kind = "python"``. To
    resume such a run, give the same object again. Its state is saved with the checkpoints.

    Args:
        run: a run file or the name of a recipe, its tables as a dict, or a ``RunConfig``.
        overrides: changes to it, such as ``"train.steps=100"``.
        optimizer: an Optax transformation in place of ``[optimizer]``: the whole update, learning
            rate and clipping included.
        data: batches in place of ``[data]``: a :class:`ziggurat.train.parts.TrainingData`, or a
            batched ``grain.MapDataset`` or ``grain.IterDataset``.
        objective: a :class:`ziggurat.train.parts.ObjectiveKind` in place of ``[objective]``.
        sinks: metric sinks beside those of the run file; one that fails is left out.
        callbacks: called before, during and after training; one that fails ends the run.
        console: where progress goes; default standard error.

    Returns:
        The trained state, the run's directory with checkpoints, metrics and report, and how the
        run ended.

    Raises:
        ConfigError: the run is not valid, or was begun with an object that is not given.
        TrainError: too many steps in a row were not finite.
        DataError, ModelError, CheckpointError, ShardingError: as their parts say.
    """
    source = None if data is None else data_.as_source(data)
    supplied = Supplied(
        optimizer=optimizer, data=source, objective=objective, sinks=sinks, callbacks=callbacks
    )
    if not isinstance(run, Resolved):
        run = resolved(run, overrides, supplied)
    outcome = train_loop(run, console, supplied=supplied)
    if Processes().first:
        write_report(outcome)
    return outcome


def resolved(
    run: str | Path | JsonMapping | RunConfig,
    overrides: Sequence[str] = (),
    supplied: Supplied | None = None,
) -> Resolved[RunConfig]:
    """Resolve and validate a run file together with the objects that a caller gives.

    Raises:
        ConfigError: the run is not valid.
    """
    tree, source = _tree(run)
    given = supplied or Supplied()
    if given.optimizer is not None:
        tree["optimizer"] = {"kind": PYTHON}
    if given.objective is not None:
        tree["objective"] = {"kind": PYTHON, "type": type(given.objective).__qualname__}
    if given.data is not None:
        sizes = {"batch_size": given.data.batch_size}
        sizes |= {"sequence_length": given.data.sequence_length}
        tree["data"] = {"kind": PYTHON, "type": type(given.data).__qualname__, **sizes}
    made = config.resolve(RunConfig, tree, overrides, source)
    for name in ("optimizer", "objective", "data"):
        if getattr(given, name) is not None:
            own = {key for key in made.provenance if key.startswith(f"{name}.")}
            made.provenance.update(dict.fromkeys(own, "Python"))
    return made


def _tree(run: str | Path | JsonMapping | RunConfig) -> tuple[JsonObject, str]:
    """The run's tables, and where they come from."""
    if isinstance(run, RunConfig):
        return config.to_plain(run), "Python"
    if isinstance(run, Mapping):
        return config.to_plain(dict(run)), "Python"
    file = recipes.run_file(Path(run))
    return tomllib.loads(config.read_text(file)), str(file)


def write_report(outcome: TrainingOutcome) -> Path | None:
    """Write ``report.html`` with samples and pictures, as far as they can be made."""
    samples, pictures = _drawn(outcome)
    return attempt("the report", lambda: report(outcome, samples, pictures))


def _drawn(outcome: TrainingOutcome) -> tuple[list[Sample], list[Picture]]:
    """The report's samples and pictures, as far as they can be made."""
    settings = outcome.run.value.report
    if not outcome.finished:
        return [], []
    if Processes().count > 1 and settings.prompts:
        _log.warning("samples left out of the report: parameters are spread over processes")
        return [], []
    with outcome.timer.phase("samples"):
        samples = attempt("samples", lambda: _samples(outcome)) if settings.prompts else None
        picture = None
        if settings.sample_images:
            picture = attempt("pictures", lambda: _picture(outcome.run.value))
    return samples or [], [] if picture is None else [picture]


def _picture(run: RunConfig) -> Picture:
    """A row of drawn images for each class, by the checkpoint that was just written."""
    import jax
    import numpy as np

    from ziggurat.data.image_grid import data_uri, grid, png
    from ziggurat.models.loading import pretrained_pipeline

    pipeline = pretrained_pipeline.load(run.directory)
    sampling, guidance = pipeline.default_sampling, run.report.sample_guidance
    classes, each = pipeline.model.config.classes, run.report.sample_images
    labels = np.repeat(np.arange(classes, dtype=np.int32), each)
    seeds = np.arange(len(labels), dtype=np.int32)
    drawn = jax.jit(pipeline.draw(sampling, guidance))(pipeline.weights, labels, seeds)
    names = ", ".join(pipeline.around.labels) or f"0 to {classes - 1}"
    title = (
        f"{each} images of each class, a row each: {names}. {sampling.method}, "
        f"{sampling.steps} steps, guidance {guidance:g}."
    )
    picture = grid(np.asarray(drawn), columns=each)
    return Picture(title=title, uri=data_uri(png(picture)))


def _samples(outcome: TrainingOutcome) -> list[Sample]:
    """Greedy continuations of the run file's prompts by the trained model."""
    from ziggurat.serve.llm import LLM, EngineConfig, SamplingParams

    experiment, prompts = outcome.experiment, outcome.run.value.report.prompts
    assert experiment.parts.pretrained is not None, "prompts are refused without it"
    model = experiment.parts.pretrained(outcome.state.evaluated)
    settings = EngineConfig(max_sequence_length=context_length(experiment))
    lengths = [sample_tokens(experiment, prompt) for prompt in prompts]
    with LLM(model, settings) as llm:
        params = [SamplingParams(max_tokens=most, temperature=0.0) for most in lengths]
        outputs = llm.generate(list(prompts), params)
    return [
        Sample(prompt=prompt, continuation=output.text)
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
