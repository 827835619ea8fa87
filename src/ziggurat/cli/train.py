"""``ziggurat train``: train a run file, or resume its run."""

from pathlib import Path

from rich.table import Table

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError
from ziggurat.train import recipes

EXAMPLE = "ziggurat train recipes/tiny-python.toml --train.steps=200 --set seed=1"


def train(
    run_file: Path,
    /,
    dry_run: bool = False,
    restart: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    overrides: tuple[str, ...] = (),
) -> int:
    """Train a model as a run file says; an interrupted run resumes from its newest checkpoint.

    Args:
        run_file: TOML file, or the name of a recipe, such as tiny-python.
        dry_run: resolve and check everything, show it, and stop before the first step.
        restart: begin anew at step 0 when the run's checkpoints are gone; files of the earlier
            attempt are kept in its directory, in earlier-1.
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
    if dry_run:
        return _describe(run)
    if restart:
        _restart(run.value)
    return _train(run)


def _restart(run) -> None:
    from ziggurat.mesh import Processes
    from ziggurat.train.restart import set_aside

    aside = Processes().once("set the earlier attempt aside", lambda: set_aside(run))
    if aside and Processes().first:
        console.output().print(f"files of the earlier attempt: {aside}", soft_wrap=True)


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
    from ziggurat.train.derived import check_report
    from ziggurat.train.experiment import prepare
    from ziggurat.train.run_directory import RunDirectory

    RunDirectory(run.value.directory).check(run)
    experiment = prepare(run.value)
    check_report(experiment)
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
    from ziggurat.api.training import write_report
    from ziggurat.mesh import Processes
    from ziggurat.train.loop import train as train_run

    outcome = train_run(run)
    if not Processes().first:
        return outcome.exit_code
    path = write_report(outcome)
    out = console.output()
    out.print(f"{outcome.status}: {run.value.directory}")
    if path is not None:
        out.print(f"report: {path}")
    if not outcome.finished:
        out.print("to resume, give the same command again")
    return outcome.exit_code


def main(args: list[str]) -> int:
    return console.run(train, args, "ziggurat train", EXAMPLE)
