"""From work and collectives to seconds: the time model, and what it assumes.

Every operation takes the longer of its arithmetic and its traffic (the roofline of Williams et al.
2009), divided evenly over the devices; their sum is the time to compute. Collectives of weights and
gradients overlap with it, those of activations do not::

    step = max(compute, collectives of weights and gradients) + collectives of activations

One constant per generation, fitted on one published run, stands for what matmuls reach of the peak
(:data:`EFFICIENCY`); everything else is published figures. ``benchmarks/plan_published.py`` shows
what the model says of published runs.
"""

import dataclasses
import math
from collections.abc import Sequence

from ziggurat.core.errors import PlanError
from ziggurat.mesh import MESH_AXES
from ziggurat.plan.analytic import TOKENS
from ziggurat.plan.fabric import Collective
from ziggurat.plan.topology import Topology
from ziggurat.plan.work import ATTENTION, KINDS, Operation, total_flops
from ziggurat.profile import flops as flops_
from ziggurat.profile.hardware import CHIPS

EFFICIENCY: dict[str, float] = {
    chip.generation: chip.efficiency for chip in CHIPS if chip.efficiency is not None
}
"""Share of the peak that matrix multiplications reach, by generation."""
UNFITTED = min(EFFICIENCY.values())
"""Share assumed where no published run was at hand: the lowest of the fitted."""
OVERLAPPED_AXES = tuple(name for name, axis in MESH_AXES.items() if not axis.carries_tokens)
"""Collectives along these mesh axes only are of weights and gradients, but for tokens of
experts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Predicted time of a training step, with the figures that follow from it."""

    step_s: float
    compute_s: float
    by_kind_s: dict[str, float]
    """Compute by :data:`ziggurat.plan.work.KINDS`, seconds."""
    ici_s: float
    """Collectives inside slices, overlapped or not."""
    dcn_s: float
    """Collectives between slices, overlapped or not."""
    exposed_s: float
    """Seconds that collectives add to the step."""
    hardware_flops: float
    """All matmuls of the step, recomputation too."""
    model_flops: float
    """The model's own, without recomputation, see ``profile.flops``; attention over the whole
    sequence, or as far as the program computes it where that alone would make MFU exceed 1."""
    tokens: int
    """Tokens of a step."""
    chips: int
    peak: float
    """Peak of one chip, FLOP/s."""
    assumptions: tuple[str, ...]

    @property
    def tokens_per_s(self) -> float:
        """Throughput of the whole job, tokens per second."""
        return self.tokens / self.step_s

    @property
    def mfu(self) -> float:
        """Model FLOP utilisation, a fraction."""
        share = flops_.mfu(self.tokens_per_s, self.model_flops / self.tokens, self.chips, self.peak)
        assert share is not None
        return share

    def cost(self, per_chip_hour: float) -> float:
        """Cost of a billion tokens, at a price of one chip for an hour."""
        hours = 1e9 / self.tokens_per_s / 3600
        return hours * self.chips * per_chip_hour


def efficiency(generation: str) -> float:
    """Fraction of the peak that matmuls reach on a generation."""
    return EFFICIENCY.get(generation, UNFITTED)


def estimate(
    topology: Topology,
    operations: Sequence[Operation],
    collectives: Sequence[Collective],
    *,
    tokens: int,
    model_flops_per_token: float,
    matmul_flops_per_token: float,
    compiled: bool,
) -> Estimate:
    """Predict the time of a step.

    Args:
        topology: where it runs.
        operations: from :func:`ziggurat.plan.work.operations`.
        collectives: of the compiled program, or :func:`ziggurat.plan.analytic.collectives`.
        tokens: of a step.
        model_flops_per_token: forwards and backwards, from ``profile.flops``.
        matmul_flops_per_token: the part of it that is matmuls with weights.
        compiled: whether the collectives are those of the compiled program.

    Raises:
        PlanError: MFU would exceed 100 %, since less work was counted than the model needs.
    """
    chip, reach = topology.chip, efficiency(topology.generation.name)
    by_kind = dict.fromkeys(KINDS, 0.0)
    for operation in operations:
        peak = chip.int8 if operation.dtype == "int8" and chip.int8 else chip.bfloat16
        arithmetic = operation.flops / (peak * reach)
        traffic = operation.bytes / chip.hbm_bytes_per_s
        by_kind[operation.kind] += operation.count * max(arithmetic, traffic) / topology.chips
    compute = float(sum(by_kind.values()))
    hidden = [c for c in collectives if _overlapped(c)]
    shown = [c for c in collectives if not _overlapped(c)]
    # links inside slices and the network between them work at the same time
    behind = float(max(sum(c.ici_s for c in hidden), sum(c.dcn_s for c in hidden)))
    exposed = max(0.0, behind - compute) + sum(c.ici_s + c.dcn_s for c in shown)
    most = topology.chips * chip.bfloat16 * (compute + exposed)
    needed = matmul_flops_per_token * tokens
    if needed > most:
        share = needed / most if most else math.inf
        raise PlanError(
            "estimate",
            found=f"an MFU of {share:.0%}: {total_flops(operations):.3g} FLOPs counted in "
            f"the program, {needed:.3g} needed for matmuls with weights",
            expected="at most 100%",
            fix="this is a fault of Ziggurat's own count, not of the run: please report it with "
            "the run file",
        )
    attending = model_flops_per_token * tokens - needed
    if needed + attending > most:  # a causal kernel skips what PaLM's count has
        attending = min(attending, total_flops(operations, ATTENTION), most - needed)
    return Estimate(
        step_s=compute + exposed,
        compute_s=compute,
        by_kind_s=by_kind,
        ici_s=float(sum(c.ici_s for c in collectives)),
        dcn_s=float(sum(c.dcn_s for c in collectives)),
        exposed_s=exposed,
        hardware_flops=total_flops(operations),
        model_flops=needed + attending,
        tokens=tokens,
        chips=topology.chips,
        peak=chip.bfloat16,
        assumptions=assumptions(topology, compiled),
    )


def _overlapped(found: Collective) -> bool:
    return found.purpose != TOKENS and set(found.route.axes) <= set(OVERLAPPED_AXES)


def assumptions(topology: Topology, compiled: bool) -> tuple[str, ...]:
    """Assumptions behind the figures, one line each."""
    chip, name = topology.chip, topology.generation.name
    fitted = "fitted on one published run" if name in EFFICIENCY else "not fitted for it"
    dcn = chip.dcn_bytes_per_s
    lines = [
        f"{chip.name}: {chip.bfloat16 / 1e12:.0f} TFLOP/s bfloat16, "
        f"{chip.hbm_bytes_per_s / 1e9:.0f} GB/s HBM, {chip.ici_bytes_per_s / 1e9:.0f} GB/s ICI "
        f"both ways, {'no' if dcn is None else f'{dcn / 1e9:.2f} GB/s'} DCN ({chip.source})",
        f"matmuls reach {efficiency(name):.0%} of the peak on {name} ({fitted})",
        "float32 operands are multiplied in one bfloat16 pass, JAX's default on TPU",
        "work divides evenly over the devices; element-wise work between matmuls is one pass "
        "over memory",
        "collectives of weights and gradients (along pipeline, data, fsdp, expert) overlap fully "
        "with compute, those along context and tensor not at all",
        "every link of the torus axes that a group spans is used; rings close on whole axes only",
        "MFU by PaLM's count, attention over the whole sequence, causal or not; as far as it is "
        "computed where it would exceed 100%",
        "no input, checkpoint or start-up time, and no failures",
    ]
    source = "the compiled program" if compiled else "the sharding rules, not the compiled program"
    return (*lines, f"collectives are those of {source}")
