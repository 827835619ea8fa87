"""``ziggurat quantize``: a smaller checkpoint by rules, and what it costs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ziggurat.cli import console
from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.quantize.mixed_precision import FORMATS
from ziggurat.quantize.rounding import METHODS, Calibration, Rounding

EXAMPLE = """ziggurat quantize runs/tiny-python --recipe int8 --output models/tiny-int8 --report
  ziggurat quantize MODEL --recipe int4 --method gptq --calibration texts.jsonl --output models/int4
  ziggurat quantize MODEL --within-perplexity 2% --text mine.txt --output models/mixed
  ziggurat quantize MODEL.gguf --recipe my-recipe.toml --output models/mixed"""


def quantize(
    model: Path,
    /,
    output: Path,
    recipe: str | None = None,
    within_perplexity: str | None = None,
    formats: tuple[str, ...] = (),
    method: str = "rtn",
    calibration: str | None = None,
    calibration_tokens: int | None = None,
    calibration_length: int | None = None,
    seed: int | None = None,
    damping: float | None = None,
    activation_order: Literal["on", "off"] | None = None,
    smoothing: float | None = None,
    iterations: int | None = None,
    report: bool = False,
    text: tuple[Path, ...] = (),
    tokens: int = 8192,
) -> int:
    """Quantise a model's weights into a checkpoint that every command takes.

    Args:
        model: a run, a checkpoint step, a Hugging Face directory or a GGUF file.
        output: new directory for the checkpoint.
        recipe: int8, w8a8 (int8 weights and activations), fp8, int4, nf4, or a .toml file of rules.
        within_perplexity: instead of a recipe: find the smallest with which perplexity on the text
            rises by at most this, such as 2%.
        formats: recipes whose formats such a search tries for each matrix, beside its floats;
            default int8 int4.
        method: rtn (each weight to the nearest value), mse (the same, scales of the least squared
            error); with --calibration gptq (the inputs that follow make up for each error), awq
            (inputs with large activations are scaled up first), smoothquant (outliers move from
            activations into weights; for w8a8) or autoround (rounding and clipping are learned).
        calibration: text like what the model will read: a file or a directory of UTF-8 text, JSON
            lines (field text) or Parquet (column text).
        calibration_tokens: how many tokens of it are used; default 32768.
        calibration_length: tokens of one row; default 512.
        seed: which rows of the text are drawn; default 0.
        damping: gptq: share of the mean of the Hessian's diagonal that is added to it; default
            0.01.
        activation_order: gptq: round the inputs with the largest activations first; default on.
        smoothing: smoothquant: share of the outliers that moves into weights; default 0.5.
        iterations: autoround: steps of SignSGD for each matrix; default 200.
        report: compare perplexity and top-1 agreement on held-out text, and write report.html.
        text: UTF-8 files of held-out text; default: the language reference that Python carries.
        tokens: how many tokens to compare on.
    """
    if (text or tokens != 8192) and not report and within_perplexity is None:
        raise ConfigError("--text and --tokens", found="no --report", expected="--report with them")
    if recipe is None and within_perplexity is None:
        raise ConfigError("quantize", found="no recipe", expected="--recipe or --within-perplexity")
    if tokens < 1:
        raise ConfigError("--tokens", found=tokens, expected="1 or more")
    order = None if activation_order is None else activation_order == "on"
    settings = {
        "damping": damping,
        "activation_order": order,
        "smoothing": smoothing,
        "iterations": iterations,
    }
    amounts = {"tokens": calibration_tokens, "length": calibration_length, "seed": seed}
    used = METHODS[method].settings + (tuple(amounts) if METHODS[method].calibrated else ())
    given = amounts | settings
    _refuse_unused(method, {n: v for n, v in given.items() if v is not None and n not in used})
    rounding = _settings(Rounding, {"method": method}, **settings)
    text_settings = None
    if calibration is not None:
        text_settings = _settings(Calibration, {"path": calibration}, **amounts)
    from ziggurat.api.quantizing import quantize as run
    from ziggurat.quantize.report import write_page

    found = run(
        model,
        output,
        recipe=recipe,
        within_perplexity=None if within_perplexity is None else _share(within_perplexity),
        formats=formats or FORMATS,
        rounding=rounding,
        calibration=text_settings,
        compare=report,
        text=text,
        tokens=tokens,
        progress=_progress,
    )
    _print(found)
    if report:
        console.output().print(f"report: {write_page(output / 'report.html', found)}", markup=False)
    console.output().print(f"written: {found.path}", markup=False)
    return 0


def _settings(node: Any, given: dict[str, Any], **more: Any) -> Any:
    """A config node of the options that were given; the others keep its defaults."""
    given = given | {name: value for name, value in more.items() if value is not None}
    return config.from_plain(node, given, "quantize")


def _share(text: str) -> float:
    """A share from ``2%`` or ``0.02``."""
    number, percent = text.removesuffix("%").strip(), text.endswith("%")
    try:
        return float(number) / (100 if percent else 1)
    except ValueError:
        raise ConfigError(
            "--within-perplexity", found=repr(text), expected="a share such as 2% or 0.02"
        ) from None


def _refuse_unused(method: str, given: dict[str, Any]) -> None:
    names = {"tokens": "calibration-tokens", "length": "calibration-length"}
    for name, value in given.items():
        reading = [other for other in METHODS if name in METHODS[other].settings]
        reading = reading or [other for other in METHODS if METHODS[other].calibrated]
        raise ConfigError(
            f"--{names.get(name, name).replace('_', '-')}",
            found=value,
            expected=f"a method that reads it, not {method}",
            fix=f"add --method {' or '.join(reading)}",
        )


def _print(report: Any) -> None:
    from rich.table import Table

    from ziggurat.quantize.report import search_table, summary

    out = console.output()
    if report.mixed is not None:
        headings, *rows, whole = search_table(report.mixed)
        table = Table(*headings, title="size and rise of perplexity, each module alone")
        table.title_justify = "left"
        for row in rows:
            table.add_row(*row, end_section=row is rows[-1])
        table.add_row(*whole)
        out.print(table)
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
