"""Charts: what is drawn is where the numbers say, spikes survive thinning, odd input draws."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from ziggurat.profile.charts import Series, line_chart, log_ticks, running_mean, thin, ticks


def parse(svg):
    return ET.fromstring(str(svg).replace("&times;", "x"))


def polyline(svg, kind="line s1"):
    return [
        [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
        for line in parse(svg).iter("polyline")
        if line.get("class") == kind
    ]


def test_points_are_where_the_ticks_say():
    svg = line_chart([Series("a", [(0, 1.0), (50, 3.0), (100, 2.0)])], label="A")
    tree = parse(svg)
    labels = {
        float(text.text or ""): float(text.get("y", ""))
        for text in tree.iter("text")
        if text.get("dy")
    }
    ((low, high, middle),) = polyline(svg)
    assert labels[1.0] == pytest.approx(low[1], abs=0.02)
    assert labels[3.0] == pytest.approx(high[1], abs=0.02)
    assert high[1] < middle[1] < low[1]  # up is more
    assert high[0] == pytest.approx((low[0] + middle[0]) / 2, abs=0.02)


def test_wide_range_is_logarithmic():
    svg = line_chart([Series("a", [(0, 1.0), (1, 10.0), (2, 100.0)])], label="A")
    ((a, b, c),) = polyline(svg)
    assert b[1] == pytest.approx((a[1] + c[1]) / 2, abs=0.02)


def test_nan_breaks_the_line_and_is_marked():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0), (4, 1.0), (5, math.inf)]
    svg = line_chart([Series("a", points)], label="A")
    assert [len(run) for run in polyline(svg)] == [2, 2]
    assert str(svg).count('class="break"') == 2
    assert "a, step 2: nan" in svg
    assert "a, step 5: inf" in svg


@pytest.mark.parametrize(
    "points",
    [
        [(0, 5.0)],
        [(7, 0.0)],
        [(0, math.nan)],
        [(0, 3.0), (9, 3.0)],
        [(0, -1e-12), (1, 1e-12)],
        [(0, 0.0), (10**9, 1e30)],
        [(3, -5), (4, -7)],
        [(0, 1e-9), (1, 1e9)],
    ],
)
def test_odd_series_draw_inside_the_frame(points):
    svg = line_chart([Series("a", points), Series("none", [])], label="A", wide=True)
    tree = parse(svg)
    _, _, width, height = map(float, tree.get("viewBox", "").split())
    for number in re.findall(r'\b(?:c|)([xy])="(-?[\d.]+)"', str(svg)):
        assert -6 <= float(number[1]) <= (width if number[0] == "x" else height)
    assert "nan" not in re.sub("<title>.*?</title>", "", str(svg))
    assert tree.findall(".//text")


def test_nothing_draws_nothing():
    assert line_chart([Series("a", [])], label="A") == ""


def test_names_are_escaped():
    svg = line_chart([Series("<b>", [(0, 1.0)])], label='"&', marks=[(0, "<i>")])
    assert "<b>" not in svg
    assert "<i>" not in svg
    parse(svg)


def test_a_long_series_keeps_its_spike_and_stays_small():
    points = [(step, 1.0 + 0.001 * (step % 7)) for step in range(200_000)]
    points[123_457] = (123_457, 9.0)
    points[150_001] = (150_001, math.nan)
    kept = thin(points, 500)
    assert len(kept) <= 2500
    assert (123_457, 9.0) in kept
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert [step for step, value in kept if math.isnan(value)] == [150_001]
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    assert len(line_chart([Series("a", points, smooth=True)], label="A")) < 200_000


def test_smoothing_draws_the_mean_over_the_fainter_line():
    points = [(step, float(step % 2)) for step in range(1000)]
    svg = line_chart([Series("a", points, smooth=True)], label="A")
    assert polyline(svg, "line s1 faint")
    ((_, *middle, _),) = polyline(svg)
    heights = [y for _, y in middle[20:-20]]
    assert max(heights) - min(heights) < 20
    assert polyline(line_chart([Series("a", points[:100], smooth=True)], label="A"))


def test_running_mean_against_the_plain_sum():
    points = [(step, float(step**2 % 11)) for step in range(30)]
    means = running_mean([*points[:5], (99, math.nan), *points[5:]], 4)
    for i, (step, mean) in enumerate(means):
        reach = min(4, i, 29 - i)
        near = [value for _, value in points[i - reach : i + reach + 1]]
        assert step == points[i][0]
        assert mean == pytest.approx(sum(near) / len(near))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 2.7), (-5, 5), (1e-7, 3e-7), (0, 163840)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert all(low - 1e-12 <= value <= high + 1e-9 for value in found)
    assert all(2 <= len(log_ticks(a, b)) <= 7 for a, b in [(0.01, 3), (1e-9, 1e9), (2, 250)])
