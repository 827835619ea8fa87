"""``ziggurat data stats``: what the documents of a run are, counted from the token stores."""

import dataclasses
import sys
from json import dumps
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ziggurat.cli import console, data_run
from ziggurat.cli.data_counts import (
    LENGTH_COLUMNS,
    USE_COLUMNS,
    Stats,
    facts,
    length_rows,
    measure,
    use_rows,
)
from ziggurat.cli.data_page import write_page

_BAR = 40


def stats(
    run: Path,
    /,
    json: bool = False,
    html: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> int:
    """Count a run's documents, tokens, duplicates, damage and padding, source by source.

    Args:
        run: run file, or a run's directory.
        json: print JSON.
        html: also write a page with histograms of document lengths here.
    """
    source = data_run.load(run, overrides)
    dataset = data_run.open_stores(source, "stats")
    data_run.warn_if_changed(source, dataset)
    found = measure(source, dataset)
    if html is not None:
        write_page(html, found)
    if json:
        sys.stdout.write(dumps(dataclasses.asdict(found), indent=1) + "\n")
    else:
        _show(found)
        if html is not None:
            console.output().print(f"page: {html}", markup=False, soft_wrap=True)
    return 0


def _show(found: Stats) -> None:
    out = console.output()
    for columns, rows in (
        (LENGTH_COLUMNS, length_rows(found)),
        (USE_COLUMNS, use_rows(found)),
    ):
        table = Table(box=None, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        out.print(table)
        out.print()
    for label, text in facts(found):
        out.print(Text.assemble((f"{label:<16}", "bold"), text), soft_wrap=True)
    out.print(Text("\ndocuments by length in tokens", style="bold"))
    most = max(count for _, _, count in found.all.histogram)
    for shortest, longest, count in found.all.histogram:
        bar = "█" * max(round(_BAR * count / most), count > 0)
        line = Text.assemble(f"{shortest:>11,} to {longest:>11,} {count:>11,} ", (bar, "cyan"))
        out.print(line, soft_wrap=True)
    for part in found.components:
        for fault in part.faults:
            out.print(Text(f"damaged: {fault}", style="yellow"), soft_wrap=True)
