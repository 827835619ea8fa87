"""``ziggurat plan``: what a run would be like on a TPU topology, without a TPU."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.core.protocols import Device
from ziggurat.train import recipes

if TYPE_CHECKING:
    from ziggurat.plan.planning import Plan
    from ziggurat.plan.topology import Topology
    from ziggurat.train.config import RunConfig

_log = logging.getLogger(__name__)

EXAMPLE = "ziggurat plan recipes/llama3-8b-v5p.toml --topology v5p:4x4x4"
DOES_NOT_FIT = 1
COMPILED_BEST = 3


def plan(
    run_file: Path,
    /,
    topology: str,
    slices: int = 1,
    analytic: bool = False,
    search: bool = False,
    out: Path | None = None,
    prices: Path | None = None,
    json: Path | None = None,
    html: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> int:
    """Say whether a run fits a TPU topology, how fast it would be and at what cost; exit 1: it does
    not fit. Needs libtpu, no TPU.

    Args:
        run_file: TOML file, or the name of a recipe; its data is not read.
        topology: a TPU generation and its chips along each axis, e.g. v5e:4x8 or v5p:4x4x4.
        slices: slices of that topology, joined by the data-centre network.
        analytic: estimate by shapes and shardings alone: seconds, nothing compiled.
        search: rank mesh sizes and remat policies by the analytic model, compile the best three
            (none with --analytic), and write the winner as a run file.
        out: the winner's run file; default NAME-planned.toml here.
        prices: TOML table of what an hour of a chip costs.
        json: write the plan as JSON.
        html: write the plan as one page.
    """
    from ziggurat.api.planning import plan_run
    from ziggurat.core import config
    from ziggurat.plan import Topology
    from ziggurat.plan.prices import load
    from ziggurat.train.config import RunConfig

    target, table = Topology.parse(topology, slices), load(prices)
    run = config.load(RunConfig, recipes.run_file(run_file), overrides).value
    devices = target.devices()
    if search:
        file = out or Path(f"{run_file.stem}-planned.toml")
        found = _search(run, target, devices, file, compile_best=not analytic)
    elif out is not None:
        raise ConfigError("--out", found="no --search", expected="--search, which has a winner")
    else:
        found = plan_run(run, target, devices, analytic)
    _show(run.name, found, table)
    if not found.fits and not search:
        console.output().print(_remedy(run, target, devices), markup=False, highlight=False)
    _write(run.name, found, table, json, html)
    return 0 if found.fits else DOES_NOT_FIT


def _remedy(run: "RunConfig", target: "Topology", devices: list[Device]) -> str:
    """The least change that makes a run fit, by the analytic model: more recomputation, then
    smaller micro-batches."""
    from ziggurat.core import config
    from ziggurat.plan import prepare
    from ziggurat.plan.search import REMAT
    from ziggurat.train.ahead_of_time import subject

    changes = [{"train.remat": policy} for policy in REMAT[REMAT.index(run.train.remat) + 1 :]]
    parts = run.train.accumulate
    changes += [{"train.remat": "full", "train.accumulate": parts * n} for n in (2, 4, 8, 16)]
    for change in changes:
        overrides = [f"{key}={value!r}" for key, value in change.items()]
        try:
            changed = config.parse(type(run), config.to_toml(run), overrides).value
            made = prepare(subject(changed, devices), target).plan
        except (ConfigError, ShardingError):
            continue
        if made.fits:
            options = " ".join(f"--{key}={value}" for key, value in change.items())
            return f"nearest that fits: {options} ({made.peak_bytes / 1e9:.1f} GB, analytic)"
    return "nothing near fits: a larger topology, more slices or shorter sequences; try --search"


def _search(
    run: "RunConfig", target: "Topology", devices: list[Device], file: Path, compile_best: bool
) -> "Plan":
    from ziggurat.api.planning import compile_plan, with_layout
    from ziggurat.core import atomic, config
    from ziggurat.plan.search import REMAT, rank

    tried = _ranked(run, target, devices, REMAT)
    best = tried[:COMPILED_BEST] if compile_best else []
    compiled: dict[str, Plan] = {}
    for candidate, prepared in best:
        _log.info("compiling %s", candidate)
        compiled[str(candidate)] = compile_plan(with_layout(run, candidate), prepared)
    _show_ranking(tried, compiled)
    final = [(c, compiled.get(str(c)) or p.plan) for c, p in (best or tried)]
    winner, found = rank(final)[0]
    chosen = with_layout(run, winner)
    atomic.write_file(file, config.to_toml(chosen))
    console.output().print(f"winner: {winner}, written to {file}")
    return found


def _ranked(
    run: "RunConfig", target: "Topology", devices: list[Device], remat: tuple[str, ...]
) -> list[Any]:
    """Candidates with their analytic plans, best first. Where a mesh fits with less recomputation,
    more of it can only be slower and is passed over."""
    from ziggurat.api.planning import check_state, layouts, with_layout
    from ziggurat.plan import prepare
    from ziggurat.plan.search import rank
    from ziggurat.train.ahead_of_time import subject

    tried, settled = [], set()
    for candidate in layouts(run, target, devices, remat):
        key = tuple(sorted(candidate.mesh.items()))
        if key in settled:
            continue
        seen = subject(with_layout(run, candidate), devices)
        try:
            check_state(seen, target)
        except ConfigError:
            settled.add(key)
            continue
        prepared = prepare(seen, target)
        _log.info("%s: %.3f s a step", candidate, prepared.plan.estimate.step_s)
        if prepared.plan.fits:
            settled.add(key)
        tried.append((candidate, prepared))
    if not tried:
        full = {"data": 1, "fsdp": -1, "tensor": 1}
        wide = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, **full))
        check_state(subject(wide, devices), target)
        raise ShardingError(
            "search", found="no mesh that divides the run", expected="another batch or topology"
        )
    ranked = rank([((c, p), p.plan) for c, p in tried])
    return [pair for pair, _ in ranked]


def _show_ranking(tried: list[Any], compiled: dict[str, Any], most: int = 10) -> None:
    columns = ("layout", "step", "MFU", "peak, analytic", "peak, compiled", "fits")
    title = f"best of {len(tried)} layouts (analytic model; the first {len(compiled)} compiled)"
    table = Table(*columns, title=title, title_justify="left")
    for candidate, prepared in tried[:most]:
        plan_ = compiled.get(str(candidate), prepared.plan)
        known = prepared.plan.memory["peak_estimate_bytes"]
        peak = f"{plan_.peak_bytes / 1e9:.1f} GB" if str(candidate) in compiled else ""
        table.add_row(
            str(candidate),
            f"{plan_.estimate.step_s:.3f} s",
            f"{plan_.estimate.mfu:.1%}",
            f"{known / 1e9:.1f} GB",
            peak,
            "yes" if plan_.fits else "no",
        )
    console.output().print(table)


def _show(name: str, found: "Plan", prices: Any) -> None:
    from ziggurat.plan import report

    out = console.output()
    table = Table(title=f"{name} on {found.topology}", title_justify="left", show_header=False)
    groups = (
        report.summary_rows(found, prices),
        report.memory_rows(found),
        report.time_rows(found),
        report.collective_rows(found, most=6),
    )
    for rows in groups:
        for row in rows:
            table.add_row(*row)
        table.add_section()
    out.print(table)
    out.print("assumed:")
    for line in found.estimate.assumptions:
        out.print(f"  - {line}", markup=False, highlight=False)
    out.print(report.verdict(found), markup=False, highlight=False)


def _write(name: str, found: "Plan", prices: Any, json: Path | None, html: Path | None) -> None:
    from ziggurat.plan import report

    if json is not None:
        report.write_json(json, found, prices)
    if html is not None:
        report.write_page(html, name, found, prices)


def main(args: list[str]) -> int:
    return console.run(plan, args, "ziggurat plan", EXAMPLE)
