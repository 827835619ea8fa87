"""The report of a run: one HTML file that opens anywhere, without a network or a script.

It holds a summary, charts, where the wall time went, samples, the whole configuration with the
source of each value, checkpoints and versions. It takes plain data, so that it can be written from
a live run, from the files of an old one, or by a test.

>>> import tempfile
>>> run = RunReport(name="tiny", device="cpu", steps=2, total_steps=2, tokens=64, parameters=1000,
...                 metrics=[{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.5}])
>>> path = write_report(Path(tempfile.mkdtemp(), "report.html"), run)
>>> "peak unknown on this device" in path.read_text(encoding="utf-8")
True
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ziggurat.core import atomic
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.profile.charts import Series, line_chart
from ziggurat.profile.pages import render
from ziggurat.profile.quantities import duration, short, size
from ziggurat.train.metrics import curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt and the text that the model wrote after it."""

    prompt: str
    continuation: str
    step: int | None = None
    """Steps done when it was written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """Images that the model drew, joined in one picture."""

    title: str
    """Content of the picture, from left to right and top to bottom."""
    uri: str
    """The PNG file as a ``data:`` address (``data.image_grid.data_uri``)."""

    def __post_init__(self):
        assert self.uri.startswith("data:image/png;base64,"), "a page loads nothing from elsewhere"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint in the report's list."""

    step: int
    path: str
    size_bytes: int | None = None
    note: str = ""
    """E.g. ``best eval_loss`` or ``last``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunReport:
    """Content of a run's report, as plain data without JAX."""

    name: str
    device: str
    """E.g. ``8 x TPU v5p`` or ``cpu``."""
    steps: int
    """Steps done."""
    total_steps: int
    tokens: int
    """Tokens trained on."""
    parameters: int
    status: str = "finished"
    """``finished``, ``running``, or why the run ended early."""
    started: str = ""
    """When the run began, as text with its time zone."""
    metrics: Sequence[JsonMapping] = ()
    """Rows of ``train.metrics.read_metrics``."""
    median_tokens_per_s: float | int | None = None
    mfu: float | None = None
    """Model FLOP utilisation, a fraction. None: the median of the metric ``mfu``; without that
    metric too, the report says that the peak is unknown."""
    ledger_s: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
    """Seconds per phase, as ``profile.timers.StepTimer.ledger`` gives them; they sum to the wall
    time."""
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    """Highest over the devices."""
    skipped_steps: int = 0
    """Steps whose update was left out because of a bad gradient."""
    resumes: Sequence[int] = ()
    """Steps at which the run was resumed."""
    config: Sequence[tuple[str, str, str]] = ()
    """Rows (key, value, source) of ``core.config.Resolved.table``."""
    samples: Sequence[Sample] = ()
    pictures: Sequence[Picture] = ()
    checkpoints: Sequence[SavedCheckpoint] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Package or machine fact -> version or text."""


@dataclasses.dataclass(frozen=True)
class _Chart:
    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    """(metric, legend)."""
    divisor: float = 1.0
    wide: bool = False


_CHARTS = (
    _Chart("Loss", "", (("loss", "train"), ("eval_loss", "evaluation")), wide=True),
    _Chart("Learning rate", "", (("learning_rate", "learning rate"),)),
    _Chart("Throughput", "tokens/s", (("tokens_per_s", "tokens/s"),)),
    _Chart("Gradient norm", "", (("grad_norm", "gradient norm"),)),
    _Chart(
        "Memory",
        "GiB",
        (("device_bytes_in_use", "fullest device"), ("host_rss_bytes", "host process")),
        divisor=2.0**30,
    ),
)
_DOTTED = 80


def write_report(path: Path, run: RunReport) -> Path:
    """Write the report, replacing an older one atomically; returns the path.

    Directories are made as needed. All text of the run is escaped; control characters and lone
    surrogates in it become visible replacements.
    """
    html = render_report(run)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, html)
    return path


def render_report(run: RunReport) -> str:
    """The report as HTML text."""
    return render(
        "ziggurat.train",
        "report_template.html",
        run=run,
        headline=_headline(run),
        summary=_summary(run),
        charts=_charts(run),
        more=_more_charts(run),
        ledger=_ledger(run),
        wall=duration(_wall_s(run)),
        changed=sum(source != "default" for _, _, source in run.config),
        size=size,
    )


def _headline(run: RunReport) -> list[tuple[str, str]]:
    """The few figures at the top, (label, value); what was not recorded is left to the summary."""
    shown = [("final loss", _last(run, "loss")), ("final evaluation loss", _last(run, "eval_loss"))]
    shown = [(label, value) for label, value in shown if value != "none"]
    shown.append(("tokens", short(run.tokens)))
    if run.median_tokens_per_s is not None:
        shown.append(("tokens/s, median", short(run.median_tokens_per_s)))
    mfu = _mfu(run)
    shown.append(("MFU", f"{mfu:.1%}" if mfu is not None else "unknown"))
    if run.ledger_s:
        label = "wall time since resuming" if run.resumes else "wall time"
        shown.append((label, duration(_wall_s(run))))
    return shown


def _summary(run: RunReport) -> list[tuple[str, str]]:
    """Rows of the summary table: (label, value)."""
    mfu = _mfu(run)
    rows = [
        ("status", run.status),
        ("started", run.started or "not recorded"),
        ("device", run.device),
        ("parameters", f"{run.parameters:,}"),
        ("steps", f"{run.steps:,} of {run.total_steps:,}"),
        ("tokens", f"{run.tokens:,}"),
        ("final loss", _last(run, "loss")),
        ("final evaluation loss", _last(run, "eval_loss")),
        ("lowest evaluation loss", _lowest(run, "eval_loss")),
        ("tokens/s, median", _optional(run.median_tokens_per_s, lambda v: f"{v:,.0f}")),
        ("MFU", f"{mfu:.2%}" if mfu is not None else "peak unknown on this device"),
        ("peak device memory", _optional(run.peak_device_bytes, size)),
        ("peak host memory", _optional(run.peak_host_bytes, size)),
        ("skipped steps", f"{run.skipped_steps:,}"),
    ]
    where = ", ".join(f"{step:,}" for step in run.resumes)
    rows.append(("resumes", f"{len(run.resumes)} (at step {where})" if run.resumes else "0"))
    return rows


def _charts(run: RunReport) -> list[JsonObject]:
    """The standard charts that have points."""
    return [chart for spec in _CHARTS if (chart := _draw(run, spec))["svg"]]


def _more_charts(run: RunReport) -> list[JsonObject]:
    """A chart for every metric that is in no standard chart."""
    standard = {metric for spec in _CHARTS for metric, _ in spec.lines}
    names = dict.fromkeys(name for row in run.metrics for name in row)
    rest = [n for n in names if n not in standard | {"step", "time_unix_s"}]
    return [_draw(run, _Chart(name, "", ((name, name),))) for name in rest]


def _draw(run: RunReport, spec: _Chart) -> JsonObject:
    series = []
    for metric, legend in spec.lines:
        points = [(step, value / spec.divisor) for step, value in curve(run.metrics, metric)]
        few = len(points) <= _DOTTED and metric.startswith("eval_")
        series.append(Series(legend, points, dots=few, smooth=metric == "loss"))
    label = spec.title + (f", {spec.unit}" if spec.unit else "")
    marks = [(step, f"resumed at step {step}") for step in run.resumes]
    return {
        "title": spec.title,
        "unit": spec.unit,
        "wide": spec.wide,
        "legend": [
            (index, one.name)
            for index, one in enumerate(series, 1)
            if one.points and len(series) > 1
        ],
        "resumed": bool(marks) and spec.wide,
        "svg": line_chart(series, label=f"{label} by step", wide=spec.wide, marks=marks),
    }


def _ledger(run: RunReport) -> list[JsonObject]:
    """Phases by falling time; what no phase covered comes last."""
    wall_s = _wall_s(run)
    order = sorted(run.ledger_s.items(), key=lambda entry: (entry[0] == "unaccounted", -entry[1]))
    return [
        {
            "name": name,
            "time": duration(seconds) if seconds >= 60 else f"{seconds:.2f} s",
            "percent": f"{100 * seconds / wall_s:.1f}" if wall_s > 0 else "0.0",
            "color": 0 if name == "unaccounted" else index % 8 + 1,
        }
        for index, (name, seconds) in enumerate(order)
    ]


def _wall_s(run: RunReport) -> float:
    return float(sum(run.ledger_s.values()))


def _mfu(run: RunReport) -> float | None:
    values = [value for _, value in curve(run.metrics, "mfu")]
    return statistics.median(values) if run.mfu is None and values else run.mfu


def _last(run: RunReport, metric: str) -> str:
    points = curve(run.metrics, metric)
    return f"{points[-1][1]:.4f}" if points else "none"


def _lowest(run: RunReport, metric: str) -> str:
    points = [point for point in curve(run.metrics, metric) if math.isfinite(point[1])]
    if not points:
        return "none"
    step, value = min(points, key=lambda point: point[1])
    return f"{value:.4f} (step {step:,})"


def _optional(value: Any, show: Any) -> str:
    return show(value) if value is not None else "not recorded"
