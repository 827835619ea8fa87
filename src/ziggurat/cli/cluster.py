"""``ziggurat cluster``: one controller that trains over hosts, whichever are there."""

import logging
import os
import signal
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ziggurat.cli import console
from ziggurat.cli.subcommands import Subcommand, dispatch
from ziggurat.core.errors import ConfigError
from ziggurat.core.json_types import JsonObject
from ziggurat.train import recipes

if TYPE_CHECKING:
    from ziggurat.cluster import Cluster
    from ziggurat.cluster.supervision import ProgramOutcome
    from ziggurat.profile.goodput import Goodput
    from ziggurat.train.config import RunConfig

_log = logging.getLogger(__name__)
STOPPED = "to resume, give the same command again"


def run(
    run_file: Path,
    /,
    hosts: int,
    spares: int = 0,
    engine: str = "subprocess",
    address: str | None = None,
    bind: str = "127.0.0.1",
    silence_s: float = 20.0,
    step_deadline_s: float = 900.0,
    compile_s: float = 3600.0,
    max_failures: int = 10,
    failure_window_s: float = 3600.0,
    restart: bool = False,
    overrides: tuple[str, ...] = (),
) -> int:
    """Train a run file over several hosts from this process; lost hosts are replaced, and training
    resumes from the newest checkpoint with the hosts that are there.

    Args:
        run_file: TOML file, or the name of a recipe; its train.accumulate is meant for --hosts.
        hosts: processes that train together.
        spares: processes that are warm and take the place of lost ones at once.
        engine: where hosts are: subprocess (processes of this machine), ray (actors of Ray), or a
            plugin's.
        address: of a Ray cluster that runs already; by default one is started here.
        bind: address of this machine on which hosts reach the controller.
        silence_s: time without a sign of life after which a host is killed (seconds).
        step_deadline_s: time without a step after which the hosts that lag are killed (seconds).
        compile_s: time that a host may compile, during which it is not late (seconds).
        max_failures: how often hosts may be lost within --failure-window-s; one more ends the run.
        failure_window_s: seconds after which a failure is forgotten, once the run has done a step
            that it had not done before; inf: never.
        restart: begin anew at step 0 when the run's checkpoints are gone; files of the earlier
            attempt are kept in its directory, in earlier-1.
    """
    # JAX warns, each time, that its recoverable mode is experimental
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    from ziggurat.cluster import Cluster
    from ziggurat.core import config
    from ziggurat.train.config import RunConfig

    jax.config.update("jax_platforms", "cpu")  # accelerators are for the hosts
    run_file = recipes.run_file(run_file)
    resolved = config.load(RunConfig, run_file, overrides)
    text = run_file.read_text(encoding="utf-8")
    directory = resolved.value.directory
    if restart:
        _set_aside(resolved.value)
    with Cluster(
        engine,
        hosts,
        spares,
        address=address,
        bind=bind,
        directory=directory / "cluster",
        preload=("ziggurat.train.elastic",),
        silence_s=silence_s,
        step_deadline_s=step_deadline_s,
        compile_s=compile_s,
        max_failures=max_failures,
        failure_window_s=failure_window_s,
    ) as cluster:
        from ziggurat.train.elastic import train_on, usable

        check = usable(resolved.value, _devices(cluster), hosts)
        outcome = cluster.train(
            train_on, text, str(run_file), tuple(overrides), hosts, usable=check
        )
        account = cluster.ledger.account()
    return _tell(outcome, account, directory)


def _devices(cluster: "Cluster") -> int:
    """Devices of each host.

    Raises:
        ConfigError: hosts have different numbers.
    """
    counts = set(cluster.run("jax:local_device_count"))
    if len(counts) > 1:
        raise ConfigError("hosts", found=f"{sorted(counts)} devices", expected="as many each")
    return counts.pop()


def _set_aside(run: "RunConfig") -> None:
    """Keep the files of an earlier attempt apart, and say where."""
    from ziggurat.train.restart import set_aside

    aside = set_aside(run)
    console.output().print(f"files of the earlier attempt: {aside}", soft_wrap=True)


def _tell(outcome: "ProgramOutcome", account: "Goodput", directory: Path) -> int:
    """Print how the training ended; returns the exit status."""
    out = console.output()
    status = outcome.values[0]["status"] if outcome.values else "stopped"
    out.print(f"{status}: {directory}", soft_wrap=True, highlight=False)
    out.print(f"{outcome.generations} worlds, {outcome.recoveries} recoveries", highlight=False)
    _print_account(account.seconds, account.wall_s)
    if outcome.stopped:
        out.print(STOPPED)
        return 128 + signal.Signals[outcome.stopped]
    return 0


def resize(directory: Path, /, hosts: int) -> int:
    """Train with another number of hosts, from the next step that all have done.

    Args:
        directory: the run's directory.
        hosts: how many from now on.
    """
    from ziggurat.cluster.record import ask

    ask(_cluster_of(directory), "resize", hosts=hosts)
    console.output().print(f"{hosts} hosts from the next boundary on")
    return 0


def status(directory: Path, /, json: bool = False) -> int:
    """Show a cluster's hosts, the losses so far and where the time went.

    Args:
        directory: the run's directory.
        json: print JSON.
    """
    from ziggurat.cluster.record import ask, read_events
    from ziggurat.core.errors import ClusterError
    from ziggurat.profile.goodput import goodput
    from ziggurat.profile.journal import read_journal

    folder = _cluster_of(directory)
    found: JsonObject
    try:
        found = ask(folder, "status")
    except ClusterError as error:
        account = goodput(read_journal(folder / "ledger.jsonl"))
        found = {"hosts": [], "controller": str(error), "step": account.steps}
        found |= {"wall_s": account.wall_s, "seconds": dict(account.seconds)}
    recoveries = [event for event in read_events(folder) if event["event"] == "recovered"]
    found["recovery_s"] = [event["seconds"] for event in recoveries]
    if json:
        console.output().print_json(dumps(found))
        return 0
    _print_status(found)
    return 0


def _print_status(found: JsonObject) -> None:
    out = console.output()
    if found["hosts"]:
        table = Table("host", "state", "index", "pid", "step", "heard of, s ago")
        for row in found["hosts"]:
            cells = [row[key] for key in ("host", "state", "index", "pid", "step", "heard_s")]
            table.add_row(*("" if cell is None else str(cell) for cell in cells))
        out.print(table)
        out.print(f"world {found['generation']}, step {found['step']}, {found['wanted']} wanted")
    else:
        out.print(f"no controller is at work; step {found['step']} was the last it told of")
    times = sorted(found["recovery_s"])
    if times:
        middle = times[len(times) // 2]
        out.print(f"{len(times)} recoveries: median {middle:.2f} s, longest {times[-1]:.2f} s")
    _print_account(found["seconds"], found["wall_s"])


def _print_account(seconds: dict[str, float] | Any, wall_s: float) -> None:
    table = Table("where the time went", "seconds", "share")
    for name, value in sorted(seconds.items(), key=lambda pair: -pair[1]):
        if value >= 0.005:
            table.add_row(name, f"{value:.2f}", f"{value / max(wall_s, 1e-9):.1%}")
    table.add_row("wall time", f"{wall_s:.2f}", "")
    console.output().print(table)


def _cluster_of(directory: Path) -> Path:
    folder = directory / "cluster"
    if not folder.is_dir():
        raise ConfigError(
            f"run {directory}",
            found="no directory cluster in it" if directory.is_dir() else "no such directory",
            expected="the directory of a run that ziggurat cluster run has begun",
        )
    return folder


COMMANDS = {
    "run": Subcommand(
        run,
        "train over several hosts, whichever of them are there",
        "ziggurat cluster run recipes/tiny-python.toml --hosts 2 --spares 1",
    ),
    "resize": Subcommand(
        resize,
        "change the number of hosts of a running run",
        "ziggurat cluster resize runs/tiny-python --hosts 3",
    ),
    "status": Subcommand(
        status, "hosts, steps and where the time went", "ziggurat cluster status runs/tiny-python"
    ),
}
ABOUT = "Train over several hosts from one process, whichever of them are there."


def main(args: list[str]) -> int:
    """Run one command of ``ziggurat cluster``."""
    return dispatch("cluster", COMMANDS, args, ABOUT, "[OPTIONS]")
