"""A plan as rows, as JSON and as one HTML page that opens anywhere."""

import dataclasses
import importlib.resources
import json
from pathlib import Path
from typing import NamedTuple

from ziggurat.core import atomic
from ziggurat.core.json_types import JsonObject
from ziggurat.mesh import MESH_AXES
from ziggurat.plan.planning import Plan
from ziggurat.plan.prices import PriceTable

_GB = 1e9
ROUGH = {name for name, axis in MESH_AXES.items() if axis.rough_memory}
"""Mesh axes for which analytic memory is a rough estimate."""


class TableRow(NamedTuple):
    """A row of the plan's table."""

    what: str
    value: str
    note: str = ""


def verdict(plan: Plan) -> str:
    """Sentence that says whether the run fits, and by how much."""
    word = "fits" if plan.fits else "does not fit"
    spare = plan.hbm_bytes - plan.peak_bytes
    share = abs(spare) / plan.hbm_bytes
    side = "free" if spare >= 0 else "too much"
    by = "compiled" if plan.program else "analytic model, not compiled"
    if not plan.program and ROUGH & plan.mesh.keys():
        by += (
            "; rough for a mesh with {' or '.join(sorted(ROUGH))}: leave out --analytic to be sure"
        )
    return (
        f"{word}: {plan.peak_bytes / _GB:.1f} of {plan.hbm_bytes / _GB:.1f} GB a device, "
        f"{abs(spare) / _GB:.1f} GB ({share:.0%}) {side} ({by})"
    )


def memory_rows(plan: Plan) -> list[TableRow]:
    """Memory of one device by kind."""
    known = plan.program.memory if plan.program else plan.memory
    names = {
        "argument_bytes": ("arguments", "parameters, optimizer state, batch"),
        "temp_bytes": ("temporaries", "gradients, activations, gathered weights"),
        "gradient_bytes": ("gradients", ""),
        "kept_for_backward_bytes": ("kept for the backward pass", ""),
        "working_bytes": ("working set of a layer or the loss", ""),
        "peak_estimate_bytes": ("peak", ""),
    }
    return [
        TableRow(text, f"{known[key] / _GB:.3f} GB", note)
        for key, (text, note) in names.items()
        if key in known
    ]


def time_rows(plan: Plan) -> list[TableRow]:
    """Rows on where the time of a step goes."""
    figures = plan.estimate
    rows = [
        TableRow(kind, f"{seconds * 1e3:.1f} ms", f"{seconds / figures.step_s:.1%}")
        for kind, seconds in figures.by_kind_s.items()
    ]
    shares = {"ICI": figures.ici_s, "DCN": figures.dcn_s}
    rows += [
        TableRow(
            f"collectives on {name}", f"{seconds * 1e3:.1f} ms", "in part behind the work above"
        )
        for name, seconds in shares.items()
        if seconds
    ]
    exposed = figures.exposed_s
    share = f"{exposed / figures.step_s:.1%}"
    return [*rows, TableRow("collectives not overlapped", f"{exposed * 1e3:.1f} ms", share)]


def summary_rows(plan: Plan, prices: PriceTable | None) -> list[TableRow]:
    """Rows of the main figures: step time, throughput, MFU, cost."""
    figures = plan.estimate
    shown = " x ".join(f"{a}={n}" for a, n in plan.mesh.items()) or "one device"
    slices, a_chip = plan.topology.slices, figures.tokens_per_s / figures.chips
    rows = [
        TableRow("chips", f"{plan.topology.chips}", f"{slices} slices" if slices > 1 else ""),
        TableRow("mesh", shown, f"remat {plan.remat}, {plan.accumulate} micro-batches a step"),
        TableRow("step", f"{figures.step_s:.3f} s", f"{figures.tokens:,} tokens"),
        TableRow("tokens/s", f"{figures.tokens_per_s:,.0f}", f"{a_chip:,.0f} a chip"),
        TableRow("MFU", f"{figures.mfu:.1%}", "of the bfloat16 peak"),
    ]
    price = prices and prices.per_chip_hour.get(plan.topology.generation.name)
    if prices and price:
        cost = f"{figures.cost(price):,.0f} {prices.currency}"
        rows.append(TableRow("a billion tokens", cost, f"{price} a chip-hour: {prices.source}"))
    else:
        hours = figures.cost(1.0)
        rows.append(
            TableRow("a billion tokens", f"{hours:,.0f} chip-hours", "no price: give --prices FILE")
        )
    if plan.program:
        host = plan.program.host_rss_peak_bytes / _GB
        text = f"{plan.program.compile_s:.1f} s"
        note = f"without generating code; {host:.2f} GB of host memory"
        rows.append(TableRow("compiled in", text, note))
    return rows


def collective_rows(plan: Plan, most: int = 12) -> list[TableRow]:
    """Rows of the most expensive collectives, by kind and mesh axes."""
    made = plan.program.collectives if plan.program else []
    totals: dict[tuple[str, str], list[float]] = {}
    for found in made:
        key = found.kind, " x ".join(found.route.axes)
        entry = totals.setdefault(key, [0.0, 0.0, 0.0])
        entry[0] += found.count
        entry[1] += found.bytes * found.count
        entry[2] += found.ici_s + found.dcn_s
    ranked = sorted(totals.items(), key=lambda item: -item[1][2])[:most]
    return [
        TableRow(
            f"{kind} over {axes}",
            f"{seconds * 1e3:.1f} ms",
            f"{count:.0f} of {size / _GB:.2f} GB in all",
        )
        for (kind, axes), (count, size, seconds) in ranked
    ]


def to_plain(plan: Plan, prices: PriceTable | None = None) -> JsonObject:
    """A plan as values that JSON has."""
    figures = dataclasses.asdict(plan.estimate)
    figures |= {"tokens_per_s": plan.estimate.tokens_per_s, "mfu": plan.estimate.mfu}
    price = prices and prices.per_chip_hour.get(plan.topology.generation.name)
    made = None
    if plan.program:
        made = {
            "memory": plan.program.memory,
            "compile_s": plan.program.compile_s,
            "host_rss_peak_bytes": plan.program.host_rss_peak_bytes,
            "collectives": [
                {
                    "kind": c.kind,
                    "bytes": c.bytes,
                    "count": c.count,
                    "axes": list(c.route.axes),
                    "ici_s": c.ici_s,
                    "dcn_s": c.dcn_s,
                }
                for c in plan.program.collectives
            ],
        }
    return {
        "topology": str(plan.topology),
        "slices": plan.topology.slices,
        "chips": plan.topology.chips,
        "mesh": plan.mesh,
        "remat": plan.remat,
        "accumulate": plan.accumulate,
        "fits": plan.fits,
        "hbm_bytes": plan.hbm_bytes,
        "peak_bytes": plan.peak_bytes,
        "analytic_memory": plan.memory,
        "estimate": figures,
        "program": made,
        "cost_of_a_billion_tokens": plan.estimate.cost(price) if price else None,
    }


def write_json(path: Path, plan: Plan, prices: PriceTable | None = None) -> None:
    """Write :func:`to_plain` to a file."""
    atomic.write_file(path, json.dumps(to_plain(plan, prices), indent=1) + "\n")


def write_page(path: Path, name: str, plan: Plan, prices: PriceTable | None = None) -> None:
    """Write one self-contained HTML page: verdict, memory bar, time split, assumptions."""
    import jinja2

    text = importlib.resources.files("ziggurat.plan").joinpath("page.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    figures = plan.estimate
    parts = [*figures.by_kind_s.items(), ("collectives not overlapped", figures.exposed_s)]
    page = environment.from_string(text).render(
        name=name,
        topology=str(plan.topology),
        verdict=verdict(plan),
        fits=plan.fits,
        filled=100 * plan.peak_bytes / plan.hbm_bytes,
        parts=[(kind, 100 * seconds / figures.step_s) for kind, seconds in parts],
        tables=[
            ("Figures", summary_rows(plan, prices)),
            ("Memory of one device", memory_rows(plan)),
            ("Time of one step", time_rows(plan)),
            ("Collectives", collective_rows(plan)),
        ],
        assumptions=figures.assumptions,
    )
    atomic.write_file(path, page)
