"""``ziggurat train``: train a run file, or go on with it."""

import logging
from pathlib import Path

from rich.table import Table

from ziggurat.cli import console, recipes
from ziggurat.core.errors import ConfigError

_log = logging.getLogger(__name__)

EXAMPLE = "ziggurat train recipes/tiny-python.toml --train.steps=200 --set seed=1"


def train(
    run_file: Path,
    /,
    dry_run: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    overrides: tuple[str, ...] = (),
) -> int:
    """Train a model as a run file says; an interrupted run goes on from its newest checkpoint.

    Args:
        run_file: TOML file, or the name of a recipe, such as tiny-python.
        dry_run: resolve and check everything, show it, and stop before the first step.
        coordinator: train with several processes, one a host: HOST:PORT of process 0, the same for
            all of them; or auto, under Slurm, Open MPI, Kubernetes or on a TPU pod.
        processes: how many processes train together.
        process: the number of this one, from 0.
    """
    from ziggurat.core import config
    from ziggurat.train.config import RunConfig

    run = config.load(RunConfig, recipes.run_file(run_file), overrides)
    _join(coordinator, processes, process)
    if dry_run or not (process or (run.value.directory / "run.toml").exists()):
        _show(run, everything=dry_run)
    return _describe(run.value) if dry_run else _train(run)


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is not None:
        from ziggurat import mesh

        mesh.join(coordinator, processes, process)
    elif processes is not None or process is not None:
        raise ConfigError(
            "--processes and --process",
            found="no --coordinator",
            expected="HOST:PORT of process 0",
        )


def _show(run, everything: bool) -> None:
    """The resolved configuration; of the defaults only when everything is asked for."""
    title = f"run {run.value.name} (all values and their sources: provenance.json)"
    table = Table("key", "value", "source", title=title, title_justify="left")
    for key, value, source in run.table():
        if everything or source != "default":
            table.add_row(key, " ".join(value.split()), Path(source).name)
    console.output().print(table)


def _describe(run) -> int:
    from ziggurat.cli.objectives import known
    from ziggurat.train.experiment import prepare

    experiment = prepare(run, objectives=known())
    out = console.output()
    out.print(f"parameters      {experiment.model.parameter_count:,}")
    data = experiment.data
    out.print(f"tokens a step   {data.batch_size * data.sequence_length:,}")
    steps = data.steps_per_epoch
    out.print(f"steps an epoch  {'not known of a stream' if steps is None else f'{steps:,}'}")
    used = {axis: size for axis, size in experiment.layout.sizes.items() if size > 1}
    out.print(f"mesh            {used or 'one device'}")
    return 0


def _train(run) -> int:
    from ziggurat.cli.objectives import known
    from ziggurat.mesh import Processes
    from ziggurat.train.loop import train as train_run
    from ziggurat.train.summary import report

    outcome = train_run(run, objectives=known())
    everyone = Processes()
    if not everyone.first:
        return 0
    samples = []
    if everyone.count > 1 and run.value.report.prompts:
        _log.warning("no samples in the report: parameters are spread over processes")
    elif outcome.finished and run.value.report.prompts:
        with outcome.timer.phase("samples"):
            samples = _samples(outcome)
    pictures = []
    if outcome.finished and run.value.report.sample_images:
        with outcome.timer.phase("samples"):
            pictures = [_picture(run.value)]
    path = report(outcome, samples, pictures)
    out = console.output()
    out.print(f"{outcome.status}: {run.value.directory}")
    out.print(f"report: {path}")
    if not outcome.finished:
        out.print("to go on, give the same command again")
    return 0


def _picture(run):
    """A row of drawn images for each class, by the checkpoint that was just written."""
    import jax
    import numpy as np

    from ziggurat.data.image_grid import data_uri, grid, png
    from ziggurat.models import image_pipeline
    from ziggurat.train.report import Picture

    pipeline = image_pipeline.load(run.directory)
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


def _samples(outcome):
    """What the trained model makes of the run file's prompts, greedily."""
    from ziggurat.serve.llm import LLM, EngineConfig, SamplingParams
    from ziggurat.train.report import Sample

    parts, run = outcome.experiment.parts, outcome.run.value
    if parts.pretrained is None:
        _log.warning("no samples in the report: what was trained writes no text")
        return []
    model = parts.pretrained(outcome.state.evaluated)
    limit = min(model.model.config.max_sequence_length, parts.data.sequence_length)
    params = SamplingParams(max_tokens=run.report.sample_tokens, temperature=0.0)
    with LLM(model, EngineConfig(max_sequence_length=limit)) as llm:
        return [
            Sample(prompt=prompt, continuation=llm.generate(prompt, params)[0].text)
            for prompt in run.report.prompts
        ]


def main(args: list[str]) -> int:
    return console.run(train, args, "ziggurat train", EXAMPLE)
