"""Which layout is best: candidates that divide, ranked by the analytic model.

>>> [c.mesh for c in candidates(devices_in_slice=4, slices=1, divides=lambda c: True)][:3]
[{'fsdp': 4}, {'fsdp': 2, 'tensor': 2}, {'tensor': 4}]
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ziggurat.plan.planning import Plan

REMAT = ("none", "dots", "full")
P = TypeVar("P")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layout that the search looks at: mesh and remat policy."""

    mesh: dict[str, int]
    """Axes inside a slice of more than one device."""
    remat: str
    slices: int = 1
    """Slices, over which replicas of the parameters lie."""

    @property
    def overrides(self) -> list[str]:
        """The candidate as overrides of a run file."""
        sizes = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | self.mesh
        keys = [f"mesh.{axis}={size}" for axis, size in sizes.items()]
        return [*keys, f"mesh.dcn.data={self.slices}", f"train.remat={self.remat!r}"]

    def __str__(self) -> str:
        axes = " x ".join(f"{axis}={size}" for axis, size in self.mesh.items()) or "one device"
        return f"{axes}, remat {self.remat}"


def candidates(
    *,
    devices_in_slice: int,
    slices: int,
    divides: Callable[[Candidate], bool],
    most_tensor: int = 64,
    remat: Sequence[str] = ("none",),
) -> list[Candidate]:
    """Every split of a slice over ``data``, ``fsdp`` and ``tensor`` that divides the run.

    Args:
        devices_in_slice: devices of one slice.
        slices: slices; replicas lie across them.
        divides: whether the run's dimensions divide over a candidate's mesh.
        most_tensor: largest number of tensor shards.
        remat: policies to combine with each.
    """
    found = []
    for tensor in _divisors(devices_in_slice):
        if tensor > max(most_tensor, 1):
            continue
        for data in _divisors(devices_in_slice // tensor):
            sizes = {
                "data": data,
                "fsdp": devices_in_slice // tensor // data,
                "tensor": tensor,
            }
            mesh = {axis: size for axis, size in sizes.items() if size > 1}
            if divides(Candidate(mesh, remat[0], slices)):
                found += [Candidate(mesh, policy, slices) for policy in remat]
    return sorted(found, key=lambda c: (c.mesh.get("data", 1), c.mesh.get("tensor", 1)))


def rank(plans: Iterable[tuple[P, Plan]]) -> list[tuple[P, Plan]]:
    """Plans that fit, fastest first; then those that do not, nearest to fitting first."""

    def order(pair: tuple[P, Plan]) -> tuple[bool, float]:
        plan = pair[1]
        return not plan.fits, plan.estimate.step_s if plan.fits else plan.peak_bytes

    return sorted(plans, key=order)


def nearest(wanted: dict[str, int], known: Sequence[Candidate]) -> Candidate | None:
    """The candidate whose mesh differs least from a wanted one, by the ratio of sizes."""

    def distance(candidate: Candidate) -> float:
        axes = set(wanted) | set(candidate.mesh)
        pairs = [(wanted.get(axis, 1), candidate.mesh.get(axis, 1)) for axis in sorted(axes)]
        return sum(abs(math.log(max(a, 1) / b)) for a, b in pairs)

    return min(known, key=distance, default=None)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
