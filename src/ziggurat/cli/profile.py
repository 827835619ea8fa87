"""``ziggurat profile``: where a run's time and memory went, and what to do about it."""

import dataclasses
import json as json_
from pathlib import Path

from rich.table import Table

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError

EXAMPLE = "ziggurat profile runs/tiny-python"


def profile(run: Path, /, html: Path | None = None, json: bool = False) -> int:
    """Say where a run's wall time went, also while it runs, and write a page about it.

    Goodput is the share of wall time, over all restarts, that went into steps that counted. The
    page also shows step times, memory, and the operations of the newest traced step.

    Args:
        run: the run's directory.
        html: where to write the page; default profile.html in the run's directory.
        json: print JSON, and write no page unless asked to.
    """
    found = read(run)
    if html is not None or not json:
        from ziggurat.core import atomic
        from ziggurat.profile.run_page import render_profile

        html = html or run / "profile.html"
        atomic.write_file(html, render_profile(found))
    if json:
        plain = {
            "goodput": found.account.share,
            "wall_s": found.account.wall_s,
            "seconds": dict(found.account.seconds),
            "sessions": found.account.sessions,
            "steps": found.account.steps,
            "replayed_steps": found.account.replayed_steps,
            "findings": [dataclasses.asdict(finding) for finding in found.findings],
            "operations": [dataclasses.asdict(operation) for operation in found.operations],
        }
        console.output().print_json(json_.dumps(plain))
        return 0
    _print(found)
    console.output().print(f"page: {html}", soft_wrap=True)
    return 0


def read(run: Path):
    """A run's profile from its files.

    Raises:
        ConfigError: no run that was timed is there.
    """
    from ziggurat.profile.goodput import goodput
    from ziggurat.profile.journal import read_journal
    from ziggurat.profile.run_page import RunProfile
    from ziggurat.profile.sampling import MODULES
    from ziggurat.profile.trace import summarise
    from ziggurat.train.metrics import read_metrics
    from ziggurat.train.run_directory import RunDirectory

    directory = RunDirectory(run)
    sessions = read_journal(directory.ledger)
    if not sessions:
        raise ConfigError(
            f"run {run}",
            found="no ledger.jsonl" if run.is_dir() else "no such directory",
            expected="the directory of a run that has begun",
        )
    modules = directory.traces / MODULES
    names = json_.loads(modules.read_text(encoding="utf-8")) if modules.exists() else {}
    return RunProfile(
        name=run.resolve().name,
        account=goodput(sessions),
        rows=read_metrics(directory.metrics) if directory.metrics.exists() else [],
        operations=summarise(directory.traces, names) if names else (),
    )


def _print(found) -> None:
    from ziggurat.profile.findings import headline
    from ziggurat.profile.trace import by_module

    out = console.output()
    out.print(f"{found.name}: {headline(found.account)}", soft_wrap=True, markup=False)
    table = Table("where", "what", "seconds", "share")
    for name, meaning, seconds, share in found.ledger:
        table.add_row(name, meaning, f"{seconds:.2f}", f"{share:.1%}")
    out.print(table)
    figures = Table("figure", "value")
    for name, value in found.figures:
        figures.add_row(name, value)
    out.print(figures)
    modules = by_module(list(found.operations))
    if modules:
        total = sum(modules.values())
        traced = Table("module", "ms a step, all cores", "share")
        for name, seconds in list(modules.items())[:12]:
            traced.add_row(name, f"{1000 * seconds:.2f}", f"{seconds / total:.1%}")
        out.print(traced)
    for finding in found.findings:
        line = f"- {finding.title}: {finding.advice}"
        out.print(line, soft_wrap=True, markup=False, highlight=False)
    if not found.findings:
        out.print("nothing stands out")


def main(args: list[str]) -> int:
    """Run ``ziggurat profile``."""
    return console.run(profile, args, "ziggurat profile", EXAMPLE)
