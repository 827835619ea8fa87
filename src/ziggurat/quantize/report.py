"""The report of a quantisation: rows for a table, and one HTML page that opens anywhere."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from ziggurat.core import atomic
from ziggurat.core.pytrees import named_leaves, size_bytes
from ziggurat.kernels.linear import QuantizedWeight, WeightFormat, is_quantized
from ziggurat.profile import pages
from ziggurat.quantize.evaluation import Comparison
from ziggurat.quantize.mixed_precision import FLOAT, MixedPrecision
from ziggurat.quantize.recipe import module_of
from ziggurat.quantize.weights import Quantized, WeightError


@dataclasses.dataclass(frozen=True)
class WeightRow:
    """One weight of the model, all its layers together."""

    module: str
    format: str
    """Format, such as ``int4, tile 32, zero points``; ``float32`` where it was left alone."""
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    errors: tuple[float, ...]
    """Relative error of each layer (and expert); empty where nothing was quantised."""

    @property
    def mean_error(self) -> float | None:
        return sum(self.errors) / len(self.errors) if self.errors else None

    @property
    def worst(self) -> tuple[int, float] | None:
        """The layer with the largest error, and that error."""
        if not self.errors:
            return None
        return max(enumerate(self.errors), key=lambda pair: pair[1])


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """Content of a quantisation report, as plain data."""

    source: str
    recipe: str
    weights: tuple[WeightRow, ...]
    """Every matrix and every other parameter of at least two axes; the rest is one row."""
    bytes_before: int
    bytes_after: int
    """Bytes of all parameters in memory, scales and zero points included."""
    comparison: Comparison | None = None
    text: str = ""
    """Where the held-out text is from."""
    mixed: MixedPrecision | None = None
    """The search for the recipe, where a budget was given."""
    path: Path | None = None
    """The checkpoint that was written."""


def describe(format: WeightFormat) -> str:
    """Describe a format in words.

    >>> describe(WeightFormat("int4", tile_size=32, symmetric=False))
    'int4, tile 32, zero points'
    """
    parts = [format.weight]
    parts += [] if format.tile_size is None else [f"tile {format.tile_size}"]
    parts += [] if format.symmetric else ["zero points"]
    parts += [] if format.activation is None else [f"{format.activation} activations"]
    return ", ".join(parts)


def make_report(
    source: str,
    recipe: str,
    before: Any,
    done: Quantized,
    comparison: Comparison | None = None,
    text: str = "",
    mixed: MixedPrecision | None = None,
) -> QuantizationReport:
    """Collect what :func:`ziggurat.quantize.weights.quantize` did to the parameters ``before``."""
    errors: dict[str, list[WeightError]] = {}
    for error in done.errors:
        errors.setdefault(error.name, []).append(error)
    originals = named_leaves(before)
    rows, old_rest, new_rest = [], 0, 0
    for name, leaf in named_leaves(done.params, is_leaf=is_quantized).items():
        old = originals[name].nbytes
        if isinstance(leaf, QuantizedWeight) or name.endswith((".kernel", ".table")):
            said = describe(leaf.format) if isinstance(leaf, QuantizedWeight) else str(leaf.dtype)
            found = tuple(error.relative_error for error in errors.get(name, ()))
            rows.append(WeightRow(module_of(name), said, leaf.shape, old, leaf.nbytes, found))
        else:
            old_rest, new_rest = old_rest + old, new_rest + leaf.nbytes
    rest = WeightRow("norms, biases and others", "as they were", (), old_rest, new_rest, ())
    rows.append(rest)
    sizes = size_bytes(before), size_bytes(done.params)
    return QuantizationReport(source, recipe, tuple(rows), *sizes, comparison, text, mixed)


def summary(report: QuantizationReport) -> list[tuple[str, str]]:
    """The few figures that matter, (label, value)."""
    ratio = report.bytes_before / max(report.bytes_after, 1)
    before, after = report.bytes_before / 1e6, report.bytes_after / 1e6
    rows = [("size", f"{before:.2f} MB -> {after:.2f} MB ({ratio:.2f} times smaller)")]
    if report.comparison is not None:
        c = report.comparison
        change = c.perplexity_after / c.perplexity_before - 1
        rows += [
            (
                "perplexity",
                f"{c.perplexity_before:.3f} -> {c.perplexity_after:.3f} ({change:+.2%})",
            ),
            ("top-1 agreement", f"{c.agreement:.2%}"),
            ("KL divergence", f"{c.kl_divergence:.5f} nats a token"),
            ("measured on", f"{c.tokens:,} tokens of {report.text}"),
        ]
    return rows


def search_table(mixed: MixedPrecision) -> list[tuple[str, ...]]:
    """Table of a search's measurements, headings first: each matrix alone in each format, uniform
    recipes, and the recipe found."""
    formats = list(mixed.uniform)
    rows = [("module", "MB", *formats, "takes")]
    for name, each in mixed.options.items():
        found = {option.format: option for option in each}
        size = f"{found[FLOAT].nbytes / 1e6:.3f}"
        cells = [
            _cost(found[format].nbytes, math.expm1(found[format].rise)) if format in found else ""
            for format in formats
        ]
        rows.append((module_of(name), size, *cells, mixed.best.choice[name]))
    floats = sum(each[0].nbytes for each in mixed.options.values())
    cells = [_cost(trial.nbytes, trial.cost) for trial in mixed.uniform.values()]
    whole = _cost(mixed.best.nbytes, mixed.best.cost)
    rows.append(("all of them", f"{floats / 1e6:.3f}", *cells, whole))
    return rows


def _cost(nbytes: int, share: float) -> str:
    """Megabytes, and the rise of perplexity."""
    return f"{nbytes / 1e6:.3f} MB {share:+.3%}"


def write_page(path: Path, report: QuantizationReport) -> Path:
    """Write the report as one HTML file, replacing an older one atomically; returns the path."""
    worst = max((error for row in report.weights for error in row.errors), default=0.0)
    page = pages.render(
        "ziggurat.quantize",
        "report_template.html",
        report=report,
        summary=summary(report),
        searched=search_table(report.mixed) if report.mixed else (),
        shade=lambda error: _shade(error, worst),
    )
    atomic.write_file(path, page)
    return path


def _shade(error: float, worst: float) -> str:
    """Per cent of the accent colour behind an error."""
    return f"{100 * error / worst:.0f}" if worst else "0"
