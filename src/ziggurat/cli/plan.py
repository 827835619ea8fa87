"""``ziggurat plan``: what a run would be like on a TPU topology, without a TPU."""

import dataclasses
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.train import recipes

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
        topology: v5e:AxB, v6e:AxB, v5p:AxBxC or tpu7x:AxBxC in chips, e.g. v5p:4x4x4.
        slices: slices of that topology, joined by the data-centre network.
        analytic: estimate by shapes and shardings alone: seconds, nothing compiled.
        search: rank mesh sizes and remat policies by the analytic model, compile the best three
            (none with --analytic), and write the winner as a run file.
        out: the winner's run file; default NAME-planned.toml here.
        prices: TOML table of what an hour of a chip costs.
        json: write the plan as JSON.
        html: write the plan as one page.
    """
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
        found = _one(run, target, devices, analytic)
    _show(run.name, found, table)
    if not found.fits and not search:
        console.output().print(_remedy(run, target, devices), markup=False, highlight=False)
    _write(run.name, found, table, json, html)
    return 0 if found.fits else DOES_NOT_FIT


def _one(run: Any, target: Any, devices: list[Any], analytic: bool) -> Any:
    from ziggurat.plan import prepare
    from ziggurat.train.ahead_of_time import subject

    _check_slices(run, target)
    try:
        seen = subject(run, devices)
    except ShardingError as error:
        near = _nearest(run, target, devices)
        raise ShardingError(
            error.what,
            found=error.found,
            expected=error.expected,
            fix=f"nearest that divides: {near}" if near else error.fix,
        ) from error
    _check_state(seen, target)
    prepared = prepare(seen, target)
    if analytic:
        return prepared.plan
    return _compiled(run, prepared)


def _compiled(run: Any, prepared: Any) -> Any:
    """The plan with the compiler's memory and exchanges, compiled in a process of its own."""
    from ziggurat.core import config

    target = prepared.topology
    _log.info("compiling for %s", target)
    with tempfile.TemporaryDirectory(prefix="ziggurat-plan-") as name:
        folder, file = Path(name) / "written", Path(name) / "run.toml"
        folder.mkdir()
        file.write_text(config.to_toml(run), encoding="utf-8")
        module = "ziggurat.cli.plan_compile"
        where = [str(file), str(target), str(target.slices), str(folder)]
        return prepared.compiled([sys.executable, "-m", module, *where], folder)


def _remedy(run: Any, target: Any, devices: list[Any]) -> str:
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


def _check_slices(run: Any, target: Any) -> None:
    parts = dataclasses.asdict(run.mesh.dcn)
    product = 1
    for size in parts.values():
        product *= size
    if product != target.slices:
        raise ConfigError(
            "mesh.dcn",
            found=f"{product} slices",
            expected=f"{target.slices}, what --slices says",
            fix=f"--mesh.dcn.data={target.slices}, or --mesh.dcn.fsdp",
        )


def _check_state(seen: Any, target: Any) -> None:
    """Refuse before tracing what cannot fit by its state alone, and say what would hold it."""
    import jax

    from ziggurat.plan.analytic import argument_bytes
    from ziggurat.plan.program import hbm_bytes

    limit, leaves = hbm_bytes(target), jax.tree.leaves(seen.arguments)
    held = argument_bytes(leaves) + argument_bytes(list(seen.trained.values()))
    if held <= limit:
        return
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    whole += sum(leaf.size * leaf.dtype.itemsize for leaf in seen.trained.values())

    def share(other: Any) -> float:
        return whole / (other.chips * other.chip.devices)

    roomy = [t for t in target.larger if share(t) <= 0.8 * limit]
    if share(target) <= 0.8 * limit:
        fix = "cut the parameters over all devices: --mesh.fsdp=-1 and --mesh.data=1"
    elif roomy:
        held_there = share(roomy[0]) / 1e9
        fix = f"nearest: --topology {roomy[0]} with fsdp over all ({held_there:.1f} GB a device)"
    else:
        fix = f"more than one slice of {target.larger[-1] if target.larger else target}"
    raise ConfigError(
        f"model too large for {target}",
        found=f"{held / 1e9:.1f} GB a device of parameters, optimizer state and gradients",
        expected=f"at most {limit / 1e9:.1f} GB",
        fix=fix,
    )


def _candidates(run: Any, target: Any, devices: list[Any], remat: tuple[str, ...]) -> list[Any]:
    """Layouts that divide the run, over the topology as given."""
    from ziggurat import mesh
    from ziggurat.core import config
    from ziggurat.plan.search import Candidate, candidates
    from ziggurat.train.ahead_of_time import divides
    from ziggurat.train.parts import kind_of

    layout = mesh.build(mesh.MeshConfig(fsdp=-1), devices)
    model = kind_of(run).program(run, layout).model

    def fine(candidate: Candidate) -> bool:
        return divides(_with(config, run, candidate), devices, model)

    return candidates(
        devices_in_slice=len(devices) // target.slices,
        slices=target.slices,
        divides=fine,
        remat=remat,
    )


def _with(config: Any, run: Any, candidate: Any) -> Any:
    text = config.to_toml(run)
    return config.parse(type(run), text, candidate.overrides).value


def _nearest(run: Any, target: Any, devices: list[Any]) -> str:
    from ziggurat.plan.search import nearest

    wanted = {a: getattr(run.mesh, a) for a in ("data", "fsdp", "tensor")}
    possible = _candidates(run, target, devices, (run.train.remat,))
    found = nearest({a: n for a, n in wanted.items() if n > 1}, possible)
    if found is None:
        return ""
    return " ".join(f"--{key}" for key in found.overrides if key.startswith("mesh."))


def _search(run: Any, target: Any, devices: list[Any], file: Path, compile_best: bool) -> Any:
    from ziggurat.core import atomic, config
    from ziggurat.plan.search import REMAT, rank

    tried = _ranked(run, target, devices, REMAT)
    best = tried[:COMPILED_BEST] if compile_best else []
    compiled: dict[str, Any] = {}
    for candidate, prepared in best:
        _log.info("compiling %s", candidate)
        compiled[str(candidate)] = _compiled(_with(config, run, candidate), prepared)
    _show_ranking(tried, compiled)
    final = [(c, compiled.get(str(c), p.plan)) for c, p in (best or tried)]
    winner, found = rank(final)[0]
    chosen = _with(config, run, winner)
    atomic.write_file(file, config.to_toml(chosen))
    console.output().print(f"winner: {winner}, written to {file}")
    return found


def _ranked(run: Any, target: Any, devices: list[Any], remat: tuple[str, ...]) -> list[Any]:
    """Candidates with their analytic plans, best first. Where a mesh fits with less recomputation,
    more of it can only be slower and is passed over."""
    from ziggurat.core import config
    from ziggurat.plan import prepare
    from ziggurat.plan.search import rank
    from ziggurat.train.ahead_of_time import subject

    tried, settled = [], set()
    for candidate in _candidates(run, target, devices, remat):
        key = tuple(sorted(candidate.mesh.items()))
        if key in settled:
            continue
        seen = subject(_with(config, run, candidate), devices)
        try:
            _check_state(seen, target)
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
        _check_state(subject(wide, devices), target)
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


def _show(name: str, found: Any, prices: Any) -> None:
    from ziggurat.plan import report

    out = console.output()
    table = Table(title=f"{name} on {found.topology}", title_justify="left", show_header=False)
    groups = (
        report.summary_rows(found, prices),
        report.memory_rows(found),
        report.time_rows(found),
        report.exchange_rows(found, most=6),
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


def _write(name: str, found: Any, prices: Any, json: Path | None, html: Path | None) -> None:
    from ziggurat.plan import report

    if json is not None:
        report.write_json(json, found, prices)
    if html is not None:
        report.write_page(html, name, found, prices)


def main(args: list[str]) -> int:
    return console.run(plan, args, "ziggurat plan", EXAMPLE)
