"""``ziggurat.plan``: what a run would be like on a TPU topology, without a TPU."""

import dataclasses
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from ziggurat import mesh
from ziggurat.api.training import resolved
from ziggurat.core import config
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.core.json_types import JsonMapping
from ziggurat.core.protocols import Device
from ziggurat.plan import Plan, Prepared, Subject, Topology, prepare
from ziggurat.plan.analytic import argument_bytes
from ziggurat.plan.program import hbm_bytes
from ziggurat.plan.search import Candidate, candidates, nearest
from ziggurat.train.ahead_of_time import divides, subject
from ziggurat.train.config import RunConfig
from ziggurat.train.parts import kind_of

_log = logging.getLogger(__name__)


def plan(
    run: str | Path | JsonMapping | RunConfig,
    topology: str,
    *,
    slices: int = 1,
    analytic: bool = False,
    overrides: Sequence[str] = (),
) -> Plan:
    """Estimate whether a run fits a TPU topology, how fast it would be, and at what cost.

    Args:
        run: a run file or the name of a recipe, its tables as a dict, or a ``RunConfig``; its data
            is not read.
        topology: a TPU generation and its chips along each axis, such as ``v5p:4x4x4``.
        slices: slices of that topology, joined by the data-centre network.
        analytic: estimate by shapes and shardings alone, in seconds; default compile with libtpu.
        overrides: changes to the run, such as ``"mesh.fsdp=-1"``.

    Raises:
        ConfigError: the run's state alone is too large, or the run is not valid.
        ShardingError: a dimension does not divide over the devices.
    """
    target = Topology.parse(topology, slices)
    return plan_run(resolved(run, overrides).value, target, target.devices(), analytic)


def plan_run(run: RunConfig, target: Topology, devices: list[Device], analytic: bool) -> Plan:
    """Plan a run on the devices of a topology."""

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
    check_state(seen, target)
    prepared = prepare(seen, target)
    if analytic:
        return prepared.plan
    return compile_plan(run, prepared)


def compile_plan(run: RunConfig, prepared: Prepared) -> Plan:
    """Compile a plan's step in a child process and return the plan with the compiler's memory and
    collectives."""
    target = prepared.topology
    _log.info("compiling for %s", target)
    with tempfile.TemporaryDirectory(prefix="ziggurat-plan-") as name:
        folder, file = Path(name) / "written", Path(name) / "run.toml"
        folder.mkdir()
        file.write_text(config.to_toml(run), encoding="utf-8")
        module = "ziggurat.api.plan_compile"
        where = [str(file), str(target), str(target.slices), str(folder)]
        return prepared.compiled([sys.executable, "-m", module, *where], folder)


def _check_slices(run: RunConfig, target: Topology) -> None:
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


def check_state(seen: Subject, target: Topology) -> None:
    """Refuse before tracing what cannot fit by its state alone, and say what would hold it."""

    limit, leaves = hbm_bytes(target), jax.tree.leaves(seen.arguments)
    held = argument_bytes(leaves) + argument_bytes(list(seen.trained.values()))
    if held <= limit:
        return
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    whole += sum(leaf.size * leaf.dtype.itemsize for leaf in seen.trained.values())

    def share(other: Topology) -> float:
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


def layouts(
    run: RunConfig, target: Topology, devices: list[Device], remat: tuple[str, ...]
) -> list[Candidate]:
    """Mesh layouts that divide the run over a topology."""
    layout = mesh.build(mesh.MeshConfig(fsdp=-1), devices)
    model = kind_of(run).program(run, layout).model

    def fine(candidate: Candidate) -> bool:
        return divides(with_layout(run, candidate), devices, model)

    return candidates(
        devices_in_slice=len(devices) // target.slices,
        slices=target.slices,
        divides=fine,
        remat=remat,
    )


def with_layout(run: RunConfig, candidate: Candidate) -> RunConfig:
    """Apply a candidate's mesh and remat policy to a run."""
    text = config.to_toml(run)
    return config.parse(type(run), text, candidate.overrides).value


def _nearest(run: RunConfig, target: Topology, devices: list[Device]) -> str:
    wanted = {a: getattr(run.mesh, a) for a in ("data", "fsdp", "tensor")}
    possible = layouts(run, target, devices, (run.train.remat,))
    found = nearest({a: n for a, n in wanted.items() if n > 1}, possible)
    if found is None:
        return ""
    return " ".join(f"--{key}" for key in found.overrides if key.startswith("mesh."))
