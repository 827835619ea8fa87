"""``ziggurat quantize``: a smaller checkpoint by rules, and what it costs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError

EXAMPLE = """ziggurat quantize runs/tiny-python --recipe int8 --output models/tiny-int8 --report
  ziggurat quantize MODEL.gguf --recipe my-recipe.toml --output models/mixed"""


def quantize(
    model: Path,
    /,
    recipe: str,
    output: Path,
    report: bool = False,
    text: tuple[Path, ...] = (),
    tokens: int = 8192,
) -> int:
    """Quantise a model's weights into a checkpoint that every command takes.

    Args:
        model: a run, a checkpoint step, a Hugging Face directory or a GGUF file.
        recipe: int8, w8a8 (int8 weights and activations), fp8, int4, nf4, or a .toml file of rules.
        output: new directory for the checkpoint.
        report: compare perplexity and top-1 agreement on held-out text, and write report.html.
        text: UTF-8 files of held-out text; default: the language reference that Python carries.
        tokens: how many tokens to compare on.
    """
    if (text or tokens != 8192) and not report:
        raise ConfigError("--text and --tokens", found="no --report", expected="--report with them")
    if tokens < 1:
        raise ConfigError("--tokens", found=tokens, expected="1 or more")
    from ziggurat.api.quantizing import quantize as run
    from ziggurat.quantize.report import write_page

    found = run(
        model, output, recipe=recipe, compare=report, text=text, tokens=tokens, progress=_progress
    )
    _print(found)
    if report:
        console.output().print(f"report: {write_page(output / 'report.html', found)}", markup=False)
    console.output().print(f"written: {found.path}", markup=False)
    return 0


def _print(report: Any) -> None:
    from rich.table import Table

    from ziggurat.quantize.report import summary

    out = console.output()
    table = Table("module", "becomes", title=f"{report.source}, recipe {report.recipe}")
    table.title_justify = "left"
    for heading in ("MB before", "MB after", "mean error", "worst layer"):
        table.add_column(heading, justify="right")
    for row in report.weights:
        errors = ["", ""]
        if row.worst is not None:
            layer, error = row.worst
            where = f" ({layer})" if len(row.errors) > 1 else ""
            errors = [f"{row.mean_error:.4f}", f"{error:.4f}{where}"]
        sizes = (f"{size / 1e6:.3f}" for size in (row.bytes_before, row.bytes_after))
        table.add_row(row.module, row.format, *sizes, *errors)
    out.print(table)
    for label, value in summary(report):
        out.print(f"{label}: {value}", markup=False, highlight=False)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import Progress

    out = console.output()
    with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def main(args: list[str]) -> int:
    """Run ``ziggurat quantize``."""
    return console.run(quantize, args, "ziggurat quantize", EXAMPLE)
