"""A plan: what a run would be like on a topology, analytic or compiled."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from jaxtyping import PyTree

from ziggurat.plan import analytic, program, work
from ziggurat.plan.analytic import PlannedWeight, Step
from ziggurat.plan.estimate import Estimate, estimate
from ziggurat.plan.fabric import Fabric
from ziggurat.plan.program import CompiledStep, hbm_bytes
from ziggurat.plan.topology import Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A training step to be planned: program, shapes and shardings, nothing on a device."""

    step: jax.stages.Wrapped
    """Jitted."""
    arguments: tuple[PyTree, ...]
    """Trees of shapes, types and shardings: state and batch."""
    weights: dict[str, PlannedWeight]
    """Trained and frozen arrays by name, with what their dimensions stand for."""
    mesh: jax.sharding.Mesh
    """``jax.sharding.Mesh`` over the topology's devices."""
    tokens: int
    """Tokens of a step."""
    model_flops_per_token: float
    """Forwards and backwards; see ``profile.flops``."""
    matmul_flops_per_token: float
    """The part of it that is matmuls with weights."""
    accumulate: int = 1
    remat: str = "none"

    @property
    def trained(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, type and sharding of each array that has a gradient."""
        return {name: one.array for name, one in self.weights.items() if one.trained}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Forecast of a run: memory, time and cost."""

    topology: Topology
    mesh: dict[str, int]
    """Axes of more than one device."""
    remat: str
    accumulate: int
    estimate: Estimate
    memory: dict[str, float]
    """Bytes per device by kind, by the analytic model."""
    program: CompiledStep | None
    """Report of the compiler, if the step was compiled."""

    @property
    def peak_bytes(self) -> float:
        """Peak per device: the compiler's where there is one."""
        known = self.program.memory if self.program else self.memory
        return float(known["peak_estimate_bytes"])

    @property
    def hbm_bytes(self) -> int:
        """Memory of one device."""
        return self.program.hbm_bytes if self.program else hbm_bytes(self.topology)

    @property
    def fits(self) -> bool:
        """Whether the peak fits the device's memory."""
        return self.program.fits if self.program else self.peak_bytes <= self.hbm_bytes


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A traced step with its analytic plan; :meth:`compiled` adds the compiler's figures."""

    subject: Subject
    topology: Topology
    fabric: Fabric
    operations: list[work.Operation]
    plan: Plan

    def compiled(self, command: Sequence[str], folder: Path) -> Plan:
        """Compile the step and return the plan with the compiler's memory and collectives.

        Args:
            command: starts a process that compiles this step, see
                :func:`ziggurat.plan.program.compile_in_child`.
            folder: an empty folder for it.
        """
        made = program.compile_in_child(command, folder, self.topology, self.fabric)
        figures = estimate(
            self.topology,
            self.operations,
            made.collectives,
            tokens=self.subject.tokens,
            model_flops_per_token=self.subject.model_flops_per_token,
            matmul_flops_per_token=self.subject.matmul_flops_per_token,
            compiled=True,
        )
        return dataclasses.replace(self.plan, program=made, estimate=figures)


def prepare(subject: Subject, topology: Topology) -> Prepared:
    """Trace a step and plan it by shapes and shardings alone; seconds, nothing compiled.

    Raises:
        PlanError: the program's work cannot be counted, or less was counted than the model needs.
    """
    traced = subject.step.trace(*subject.arguments)
    fabric = Fabric(topology, subject.mesh)
    seen = Step(
        jaxpr=traced.jaxpr,
        weights=subject.weights,
        arguments=jax.tree.leaves(subject.arguments),
        tokens=subject.tokens,
        accumulate=subject.accumulate,
        remat=subject.remat,
    )
    operations = work.operations(traced.jaxpr)
    figures = estimate(
        topology,
        operations,
        analytic.collectives(seen, fabric),
        tokens=subject.tokens,
        model_flops_per_token=subject.model_flops_per_token,
        matmul_flops_per_token=subject.matmul_flops_per_token,
        compiled=False,
    )
    plan = Plan(
        topology=topology,
        mesh={a: n for a, n in zip(fabric.axes, fabric.shape) if n > 1},
        remat=subject.remat,
        accumulate=subject.accumulate,
        estimate=figures,
        memory=analytic.memory(seen, fabric),
        program=None,
    )
    return Prepared(subject, topology, fabric, operations, plan)
