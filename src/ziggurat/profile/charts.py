"""Line charts as inline SVG: no script, no network, colours from the page's style sheet.

Hovering shows the value (an SVG ``title``). Points that are NaN or infinite break the line and are
marked at the foot of the chart. A long series is thinned to what a screen can show, keeping the
lowest and highest point of each bucket, so that spikes stay.

>>> svg = line_chart([Series("train", [(0, 2.0), (10, 1.0)])], label="Loss")
>>> svg.startswith('<svg class="chart"') and "train, step 10: 1" in svg
True
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from ziggurat.profile.quantities import short

_NARROW, _WIDE = (500, 220), (1046, 320)
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 10, 26
_BUCKETS, _HOVERS = 500, 160
_LOG_FROM = 100.0
Number = float | int


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[int, Number]]
    """(step, value), in ascending steps."""
    dots: bool = False
    """Draw each point as a dot too; for few points, such as evaluations."""
    smooth: bool = False
    """With 200 points or more, draw a running mean over the fainter line."""


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Values to pixels, along one axis."""

    low: Number
    high: Number
    begin: Number
    end: Number
    log: bool = False

    def __call__(self, value: Number) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return round(self.begin + (value - low) / (high - low) * (self.end - self.begin), 2)

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    wide: bool = False,
    marks: Sequence[tuple[int, str]] = (),
    show: Callable[[Number], str] = lambda value: f"{value:.5g}",
) -> Markup:
    """Draw series over steps; the empty string when there is no point at all.

    The value axis is logarithmic when all values are positive and span a factor of 100 or more.

    Args:
        series: lines; the first two get the page's first two colours.
        label: what a screen reader says the chart is.
        wide: for the full width of a page rather than half of it.
        marks: vertical lines (step, text), e.g. where a run was resumed.
        show: a value as text, for hover titles.
    """
    steps = [step for one in series for step, _ in one.points]
    if not steps:
        return Markup("")
    width, height = _WIDE if wide else _NARROW
    x = _Axis(*_widen(min(steps), max(steps), 0.0), _LEFT, width - _RIGHT)
    values = [value for one in series for _, value in one.points if math.isfinite(value)]
    y = _value_axis(values, height - _BOTTOM)
    lines = [_line(one, index, x, y) for index, one in enumerate(series, 1)]
    hovers = [_hovers(one, index, x, y, show) for index, one in enumerate(series, 1)]
    drawn = [_mark(x(step), text, y) for step, text in marks if x.low <= step <= x.high]
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, label, Markup("").join([_grid(x, y), *lines, *hovers, *drawn]))


def thin(points: Sequence[tuple[int, Number]], buckets: int) -> list[tuple[int, Number]]:
    """At most four points per bucket (first, lowest, highest, last) and every break.

    >>> thin([(s, float(s == 7)) for s in range(10)], 1)
    [(0, 0.0), (7, 1.0), (9, 0.0)]
    """
    if len(points) <= 4 * buckets:
        return list(points)
    size = math.ceil(len(points) / buckets)
    return [p for i in range(0, len(points), size) for p in _bucket(points[i : i + size])]


def running_mean(points: Sequence[tuple[int, Number]], window: int) -> list[tuple[int, float]]:
    """Mean over ``window`` finite neighbours on either side, over fewer towards the ends.

    >>> running_mean([(0, 1.0), (1, 2.0), (2, 6.0)], 5)
    [(0, 1.0), (1, 3.0), (2, 6.0)]
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    sums = list(itertools.accumulate((value for _, value in finite), initial=0.0))
    means = []
    for i, (step, _) in enumerate(finite):
        reach = min(window, i, len(finite) - 1 - i)  # equal on both sides: no lag where it falls
        means.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return means


def _bucket(points: Sequence[tuple[int, Number]]) -> list[tuple[int, Number]]:
    finite = [i for i, point in enumerate(points) if math.isfinite(point[1])]
    keep = {0, len(points) - 1}
    if finite:
        keep |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
    if len(finite) < len(points):
        keep.add(next(i for i, point in enumerate(points) if not math.isfinite(point[1])))
    return [points[i] for i in sorted(keep)]


def ticks(low: Number, high: Number) -> list[float]:
    """Three to six round values within [low, high].

    >>> ticks(0.3, 2.7)
    [0.5, 1.0, 1.5, 2.0, 2.5]
    """
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: Number, high: Number) -> list[float]:
    """At most seven powers of ten within [low, high]; where there are but two, 2 and 5 times too.

    >>> log_ticks(0.02, 300)
    [0.1, 1.0, 10.0, 100.0]
    >>> log_ticks(0.3, 40)
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 2:
        return [10.0**i for i in range(first, last + 1, (last - first) // 6 + 1)]
    finer = [float(f"{m * 10.0**i:.6g}") for i in range(first - 1, last + 1) for m in (1, 2, 5)]
    return [value for value in finer if low <= value <= high]


def _widen(low: Number, high: Number, share: Number) -> tuple[float, float]:
    if low == high:
        pad = abs(low) * 0.05 or 1.0
        return low - pad, high + pad
    pad = (high - low) * share
    return float(low - pad), float(high + pad)


def _value_axis(values: Sequence[Number], begin: Number) -> _Axis:
    end = _TOP
    if not values:
        return _Axis(0.0, 1.0, begin, end)
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOG_FROM:
        return _Axis(low / 1.2, high * 1.2, begin, end, log=True)
    wide_low, wide_high = _widen(low, high, 0.06)
    if 0 <= low < 0.4 * high:
        wide_low = 0.0
    return _Axis(wide_low, wide_high, begin, end)


def _grid(x: _Axis, y: _Axis) -> Markup:
    parts = []
    for value in y.ticks():
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
                '<text class="tick" x="{}" y="{y}" dy="0.32em" text-anchor="end">{}</text>'
            ).format(_LEFT, x.end, _LEFT - 7, _tick(value), y=y(value))
        )
    for value in x.ticks():
        if value == int(value) >= 0:
            parts.append(
                Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                    x(value), y.begin + 18, _tick(value)
                )
            )
    return Markup("").join(parts)


def _tick(value: Number) -> str:
    return short(value) if abs(value) >= 1000 else f"{value:.4g}"


def _mark(at: Number, text: str, y: _Axis) -> Markup:
    """A dashed line inside a wider invisible one, which is easier to point at."""
    return Markup(
        '<g class="mark"><path d="M{x} {y0}V{y1}"/><path class="target" d="M{x} {y0}V{y1}"/>'
        "<title>{}</title></g>"
    ).format(text, x=at, y0=y.end, y1=y.begin)


def _line(one: Series, color: int, x: _Axis, y: _Axis) -> Markup:
    runs: list[list[tuple[float, float]]] = [[]]
    parts: list[Markup] = []
    for step, value in thin(one.points, _BUCKETS):
        if math.isfinite(value):
            runs[-1].append((x(step), y(value)))
            continue
        runs.append([])
        parts.append(
            Markup('<text class="break" x="{}" y="{}" text-anchor="middle">&times;</text>').format(
                x(step), y.begin - 2
            )
        )
    smooth = one.smooth and len(one.points) >= 200
    for run in runs:
        parts.append(_polyline(run, f"s{color} faint" if smooth else f"s{color}"))
        if one.dots or len(run) == 1:
            parts += [_dot(color, left, top, 3) for left, top in run]
    if smooth:
        mean = thin(running_mean(one.points, len(one.points) // 100), _BUCKETS)
        parts.append(_polyline([(x(step), y(value)) for step, value in mean], f"s{color}"))
    return Markup("").join(parts)


def _polyline(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    if len(points) < 2:
        return Markup("")
    path = " ".join(f"{left},{top}" for left, top in points)
    return Markup('<polyline class="line {}" points="{}"/>').format(kind, path)


def _dot(color: int, left: Number, top: Number, radius: int) -> Markup:
    return Markup('<circle class="dot s{}" cx="{}" cy="{}" r="{}"/>').format(
        color, left, top, radius
    )


def _hovers(one: Series, color: int, x: _Axis, y: _Axis, show: Callable[[Number], str]) -> Markup:
    """Transparent bands, one per shown point, that light up a dot and carry the title."""
    points = thin(one.points, _HOVERS // 4)
    edges = [x(step) for step, _ in points]
    parts = []
    for i, (step, value) in enumerate(points):
        left = (edges[i - 1] + edges[i]) / 2 if i else edges[i] - 6
        right = (edges[i] + edges[i + 1]) / 2 if i + 1 < len(edges) else edges[i] + 6
        finite = math.isfinite(value)
        top, height = y.end, y.begin - y.end
        if one.dots and finite:  # leave the rest of the chart to the lines behind the dots
            left, right, top, height = edges[i] - 7, edges[i] + 7, y(value) - 7, 14
        title = f"{one.name}, step {step}: {show(value) if finite else value}"
        dot = _dot(color, edges[i], y(value), 4) if finite else Markup("")
        parts.append(
            Markup(
                '<g class="hit"><rect x="{:.2f}" y="{}" width="{:.2f}" height="{}"/>{}'
                "<title>{}</title></g>"
            ).format(left, top, max(right - left, 0.5), height, dot, escape(title))
        )
    return Markup("").join(parts)
