"""``ziggurat tour``: one command of every row of the product's table, and a page of the results."""

import contextlib
import dataclasses
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.rule import Rule

from ziggurat.cli import console, showing
from ziggurat.cli.tour_stops import STOPS, Stop
from ziggurat.core.errors import ConfigError
from ziggurat.train import recipes

EXAMPLE = "ziggurat tour --output runs\n  ziggurat tour --only Data Quantization"
START_S = 300
"""Seconds a server may take until it is ready."""
SHOWN_LINES = 60
"""Last lines of a command's output that the page shows."""


@dataclasses.dataclass(frozen=True)
class Visit:
    """Outcome of one stop of the tour."""

    stop: Stop
    commands: tuple[str, ...]
    text: str
    seconds: float
    ok: bool
    results: tuple[tuple[str, str], ...]
    """(title, path beside the page) of the files that are there."""


def main(args: list[str]) -> int:
    return console.run(tour, args, "ziggurat tour", EXAMPLE)


def tour(output: Path = Path("runs"), only: tuple[str, ...] = ()) -> int:
    """Run one command of every row of the product's table, and write a page that links all results.

    The exit code is 1 if a stop failed; the others are visited all the same.

    Args:
        output: where the tour's directory goes.
        only: rows to visit, by their names on the page; later ones may need earlier ones.
    """
    from ziggurat.core import atomic
    from ziggurat.profile.pages import render

    stops = _chosen(only)
    directory = output / time.strftime("tour-%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    page, visits, began = directory / "index.html", [], time.monotonic()
    for number, stop in enumerate(stops, 1):
        console.output().print(
            Rule(f"{number}. {stop.function} ({stop.package})", align="left", style="bold")
        )
        visits.append(_visit(stop, directory))
        seconds = time.monotonic() - began
        text = render("ziggurat.cli", "tour_page.html", visits=visits, of=len(stops), wall=seconds)
        atomic.write_file(page, text)  # after every stop, so that a kill leaves what there was
    failed = [visit.stop.function for visit in visits if not visit.ok]
    out = console.output()
    out.print(f"{len(visits) - len(failed)} of {len(visits)} rows in {seconds:.0f} s: {page}")
    if failed:
        out.print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _chosen(only: tuple[str, ...]) -> list[Stop]:
    names = [stop.function for stop in STOPS]
    for name in only:
        if name not in names:
            raise ConfigError("--only", found=name, expected="some of " + ", ".join(names))
    return [stop for stop in STOPS if not only or stop.function in only]


def _visit(stop: Stop, directory: Path) -> Visit:
    port, began = showing.free_port(), time.monotonic()
    values = {"out": str(directory), "recipes": str(recipes.directory()), "port": str(port)}
    lines = tuple(command.format(**values) for command in stop.commands)
    texts, ok = [], True
    for line in lines:
        asked = stop.ask if line == lines[-1] else None
        console.output().print(f"$ ziggurat {line}", style="bold", markup=False, highlight=False)
        if asked is None:
            text, ok = _finished(line)
        else:
            with _server(line, f"http://127.0.0.1:{port}", directory) as problem:
                text, ok = (
                    (problem, False) if problem else (asked(f"http://127.0.0.1:{port}"), True)
                )
                console.output().print(text, markup=False, highlight=False)
        texts.append(f"$ ziggurat {line}\n{text}")
        if not ok:
            break
    there = tuple((title, path) for title, path in stop.results if (directory / path).exists())
    seconds = time.monotonic() - began
    return Visit(stop, lines, "\n\n".join(texts), seconds, ok, there)


def _finished(line: str) -> tuple[str, bool]:
    """Output of a command, echoed while it runs, and whether the command succeeded."""
    shown: list[str] = []
    command = [sys.executable, "-m", "ziggurat.cli.main", *shlex.split(line)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for row in process.stdout:
            sys.stdout.write(row)
            shown.append(row)
        code = process.wait()
    text = "".join(shown[-SHOWN_LINES:])
    return (text if code == 0 else f"{text}\nexit code {code}"), code == 0


@contextlib.contextmanager
def _server(line: str, address: str, directory: Path) -> Iterator[str]:
    """A server while it is asked; gives what went wrong, or nothing once it is ready."""
    log = directory / "server.log"
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ziggurat.cli.main", *shlex.split(line)],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline, ready = time.monotonic() + START_S, False
        while process.poll() is None and time.monotonic() < deadline and not ready:
            time.sleep(0.1)
            ready = showing.is_ready(address)
        yield "" if ready else f"the server was not ready in time; its log: {log}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
