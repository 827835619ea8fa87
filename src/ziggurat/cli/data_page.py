"""The page of ``ziggurat data stats --html``: one file, no script, no network."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from ziggurat.cli import data_counts
from ziggurat.cli.data_counts import LengthStatistics, Stats
from ziggurat.core import atomic

_STYLE = """
:root { --page: #f6f6f3; --card: #ffffff; --text: #1d2125; --muted: #64696f; --rule: #e2e2dc;
  --c1: #2f62d9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #121518; --card: #1a1e22; --text: #e4e6e8; --muted: #989fa6; --rule: #2d3338;
    --c1: #7ea4ff; } }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 16px; } h2 { font-size: 18px; margin: 32px 0 12px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 14px 16px; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
th { color: var(--muted); font-weight: 500; }
svg { display: block; width: 100%; height: auto; max-width: 760px; }
svg text { font-size: 11px; fill: var(--muted); font-family: inherit; }
svg rect { fill: var(--c1); }
"""
_BAR = (
    '<g><text x="150" y="{y}" dy="13" text-anchor="end">{shortest:,} to {longest:,}</text>'
    '<rect x="160" y="{y}" width="{width:.1f}" height="16" rx="2"/>'
    '<text x="{after:.1f}" y="{y}" dy="13">{count:,}</text></g>'
)
_WIDEST = 500


def write_page(path: Path, found: Stats) -> Path:
    """Write the page, replacing an older one atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, render(found))
    return path


def render(found: Stats) -> str:
    """The page as HTML text; all that comes from the data is escaped."""
    body = [
        Markup("<h1>Data of {}</h1>").format(found.run),
        _table(("", ""), data_counts.facts(found)),
        Markup("<h2>Documents by length in tokens</h2>"),
        _table(data_counts.LENGTH_COLUMNS, data_counts.length_rows(found)),
    ]
    for lengths in [found.all, *(found.sources if len(found.sources) > 1 else ())]:
        body.append(Markup("<h2>{}</h2>").format(lengths.name))
        body.append(Markup('<div class="card">{}</div>').format(histogram(lengths)))
    body.append(Markup("<h2>What is used</h2>"))
    body.append(_table(data_counts.USE_COLUMNS, data_counts.use_rows(found)))
    faults = [fault for part in found.components for fault in part.faults]
    if faults:
        items = Markup("").join(Markup("<li>{}</li>").format(fault) for fault in faults)
        body.append(Markup("<h2>Damaged records</h2><ul>{}</ul>").format(items))
    return Markup(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<title>{} · data</title><style>{}</style></head><body><main>{}</main></body></html>\n"
    ).format(found.run, Markup(_STYLE), Markup("\n").join(body))


def histogram(lengths: LengthStatistics) -> Markup:
    """Bars, one a bin, with the numbers beside them.

    >>> svg = histogram(data_counts.describe("a", data_counts.np.array([1, 2, 3])))
    >>> svg.count("<rect"), "2 to 3" in svg
    (2, True)
    """
    bins = lengths.histogram
    most = max((count for _, _, count in bins), default=1)
    drawn = []
    for number, (shortest, longest, count) in enumerate(bins):
        width = _WIDEST * count / most
        drawn.append(
            Markup(_BAR).format(
                y=number * 20,
                shortest=shortest,
                longest=longest,
                count=count,
                width=width,
                after=width + 166,
            )
        )
    label = f"documents of {lengths.name} by length in tokens"
    return Markup('<svg viewBox="0 0 760 {}" role="img" aria-label="{}">{}</svg>').format(
        20 * len(bins), label, Markup("").join(drawn)
    )


def _table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Markup:
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in columns)
    lines = [
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(c) for c in row))
        for row in rows
    ]
    return Markup(
        '<div class="card"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, Markup("").join(lines))
