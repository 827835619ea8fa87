"""Profile of a run, as data for a terminal and as one self-contained HTML page.

>>> from ziggurat.profile.goodput import Goodput
>>> account = Goodput(10.0, {"step": 8.0, "data": 2.0}, 1, 40, 0)
>>> profile = RunProfile(name="tiny", account=account, rows=[{"step": 0, "step_time_s": 0.2}])
>>> profile.findings[0].title
'steps wait for data: 20% of the wall time'
>>> "goodput 80.0 %" in render_profile(profile)
True
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.profile import findings as findings_
from ziggurat.profile.charts import Series, line_chart
from ziggurat.profile.goodput import REPLAY, STEP, Goodput
from ziggurat.profile.pages import render
from ziggurat.profile.quantities import duration, size
from ziggurat.profile.timers import UNACCOUNTED
from ziggurat.profile.trace import OperationTime, by_module

TOP_OPERATIONS = 20
MEANINGS = {
    "launch": "interpreter and imports",
    "start": "data, model and checkpoint opened",
    "compile": "compiling the step",
    STEP: "steps that counted",
    "data": "waiting for batches",
    "evaluation": "evaluating",
    "checkpoint": "blocked by saving",
    "trace": "taking traces",
    "samples": "generating samples",
    REPLAY: "steps done again after a kill",
    "down": "no process ran",
    UNACCOUNTED: "in no phase",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunProfile:
    """Profile of a run: account of its time, metrics, and a trace if there is one."""

    name: str
    account: Goodput
    rows: Sequence[JsonMapping]
    """Metrics by step, as ``metrics.jsonl`` has them."""
    operations: Sequence[OperationTime] = ()
    """Operations of the newest trace."""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Whatever else belongs at the top, e.g. the device."""

    @property
    def findings(self) -> list[findings_.Finding]:
        """Recommendations, the costliest first."""
        return findings_.findings(self.account, self.rows)

    @property
    def ledger(self) -> list[tuple[str, str, float, float]]:
        """Rows (category, meaning, seconds, share), the longest first, unaccounted time last."""
        rows = [
            (name, MEANINGS.get(name, name), seconds, seconds / max(self.account.wall_s, 1e-9))
            for name, seconds in self.account.seconds.items()
        ]
        return sorted(rows, key=lambda row: (row[0] == UNACCOUNTED, -row[2]))

    @property
    def figures(self) -> list[tuple[str, str]]:
        """Rows (name, value) of what was measured over all steps."""
        figures = [*self.facts.items(), ("steps", f"{self.account.steps:,}")]
        figures += [("steps done again", f"{self.account.replayed_steps:,}")]
        times = sorted(row["step_time_s"] for row in self.rows if "step_time_s" in row)
        for share in (50, 90, 99) if times else ():
            index = min(len(times) - 1, round(share / 100 * (len(times) - 1)))
            figures.append((f"step time, {share}th percentile", f"{times[index]:.4g} s"))
        for name, label, show in (
            ("tokens_per_s", "tokens/s, median", lambda value: f"{value:,.0f}"),
            ("mfu", "MFU, median", lambda value: f"{value:.1%}"),
        ):
            values = [row[name] for row in self.rows if name in row]
            shown = show(statistics.median(values)) if values else "unknown on this device"
            figures.append((label, shown))
        for name, label in (
            ("host_rss_bytes", "host memory, highest"),
            ("device_peak_bytes_in_use", "device memory, highest"),
        ):
            values = [row[name] for row in self.rows if name in row]
            if values:
                figures.append((label, size(max(values))))
        return figures


def render_profile(profile: RunProfile) -> str:
    """Render a run's profile as HTML text; the page needs no network and no script."""
    modules = by_module(list(profile.operations))
    total = sum(modules.values())
    return render(
        "ziggurat.profile",
        "run_page.html",
        profile=profile,
        headline=findings_.headline(profile.account),
        charts=_charts(profile.rows),
        modules=[(name, seconds, seconds / total) for name, seconds in modules.items()],
        operations=[(o, o.seconds / total) for o in profile.operations[:TOP_OPERATIONS]],
        duration=duration,
    )


def _charts(rows: Sequence[JsonMapping]) -> list[JsonObject]:
    def series(metric: str, legend: str, divisor: float = 1.0) -> Series:
        points = [(row["step"], row[metric] / divisor) for row in rows if metric in row]
        return Series(legend, points)

    wanted = (
        ("Step time", "s", [series("step_time_s", "step"), series("data_time_s", "data")]),
        ("Throughput", "tokens/s", [series("tokens_per_s", "tokens/s")]),
        (
            "Memory",
            "GiB",
            [
                series("device_bytes_in_use", "fullest device", 2.0**30),
                series("host_rss_bytes", "host process", 2.0**30),
            ],
        ),
    )
    drawn = []
    for title, unit, lines in wanted:
        svg = line_chart(lines, label=f"{title}, {unit} by step", wide=title == "Step time")
        if svg:
            legend = [(n, one.name) for n, one in enumerate(lines, 1) if one.points]
            wide = title == "Step time"
            chart = {"title": title, "unit": unit, "legend": legend, "svg": svg, "wide": wide}
            drawn.append(chart)
    return drawn
