"""Bandwidth of a group of devices: links of the torus inside a slice, DCN between.

A group that spans several torus axes uses the links of all of them. Along a whole axis that closes
to a ring a device sends and receives in both directions; along a part of an axis, or an open one,
the ends have one link. Collectives move, per device, for a buffer of ``n`` bytes over ``w`` ways:

==================  ==================================
all-gather          n (w-1)/w
reduce-scatter      n (w-1)/w
all-reduce          2 n (w-1)/w
all-to-all          n (w-1)/w / 4 (the mean way around a ring is a quarter of it)
collective-permute  n
==================  ==================================

Across slices the share that each device holds crosses the data-centre network once more.
Method: "How to Scale Your Model", https://jax-ml.github.io/scaling-book/sharding
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ziggurat.plan.topology import Topology

FACTORS = {
    "all-gather": 1.0,
    "reduce-scatter": 1.0,
    "all-reduce": 2.0,
    "all-to-all": 0.25,
    "collective-permute": 1.0,
}
"""Times ``n (w-1)/w``; a permutation moves its whole buffer."""


class Route(NamedTuple):
    """Bandwidths that a group of devices has for a collective."""

    ways: int
    """Devices of the group in one slice."""
    slices: int
    """Slices of the group."""
    ici_bytes_per_s: float
    """Bytes per second that one device receives inside its slice."""
    dcn_bytes_per_s: float | None
    """Bytes per second that one device receives from other slices."""
    axes: tuple[str, ...]
    """Mesh axes along which the group lies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """A collective of the step: kind, bytes and route."""

    kind: str
    """A key of :data:`FACTORS`."""
    bytes: float
    """The whole buffer: what is gathered, or what is reduced before it is scattered."""
    route: Route
    count: float
    """Times a step."""
    purpose: str = ""
    """Purpose of the collective, where it is known."""

    @property
    def ici_s(self) -> float:
        """Seconds a step on the links inside a slice."""
        ways = self.route.ways
        if ways == 1:
            return 0.0
        share = 1.0 if self.kind == "collective-permute" else (ways - 1) / ways
        moved = self.bytes * FACTORS[self.kind] * share
        return self.count * moved / self.route.ici_bytes_per_s

    @property
    def dcn_s(self) -> float:
        """Seconds a step on the data-centre network; none where its rate is not published."""
        slices, rate = self.route.slices, self.route.dcn_bytes_per_s
        if slices == 1 or rate is None:
            return 0.0
        moved = self.bytes / self.route.ways * FACTORS[self.kind] * (slices - 1) / slices
        return self.count * moved / rate


class Fabric:
    """Links between the devices of a mesh, in the order in which the compiled program numbers
    them."""

    def __init__(self, topology: Topology, mesh: Any):
        """``mesh`` is a ``jax.sharding.Mesh`` of the topology's devices."""
        self.topology, self.axes = topology, tuple(mesh.axis_names)
        self.shape = tuple(mesh.devices.shape)
        flat = list(mesh.devices.flat)
        self._coordinates = np.array([list(d.coords) for d in flat])
        self._slices = np.array([getattr(d, "slice_index", 0) for d in flat])

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self._slices)

    @property
    def across_slices(self) -> list[int]:
        """The first device, and the devices at its place in other slices."""
        same = (self._coordinates == self._coordinates[0]).all(axis=1)
        _, first = np.unique(self._slices[same], return_index=True)
        return np.flatnonzero(same)[first].tolist()

    def along(self, axes: Sequence[str]) -> Route:
        """The route of the groups along some mesh axes."""
        numbers = np.arange(self.size).reshape(self.shape)
        part = tuple(slice(None) if axis in axes else 0 for axis in self.axes)
        return self.route(np.atleast_1d(numbers[part]).ravel().tolist())

    def route(self, members: Sequence[int]) -> Route:
        """The route of one group of devices, by number."""
        chip, index = self.topology.chip, np.asarray(members)
        slices = np.unique(self._slices[index])
        inside = index[self._slices[index] == slices[0]]
        link = chip.ici_bytes_per_s / (4 * chip.torus_axes) / chip.devices
        rate = 0.0
        for axis, edge in enumerate(self.topology.shape):
            spanned = len(np.unique(self._coordinates[inside, axis]))
            if spanned > 1:
                rate += link * (2 if spanned == edge and self.topology.wraps(axis) else 1)
        dcn = chip.dcn_bytes_per_s
        return Route(
            ways=len(inside),
            slices=len(slices),
            ici_bytes_per_s=rate or 2 * link,  # the two devices of one chip
            dcn_bytes_per_s=None if dcn is None else dcn / chip.devices,
            axes=self._axes_of(index),
        )

    def _axes_of(self, members: np.ndarray) -> tuple[str, ...]:
        places = np.array(np.unravel_index(members, self.shape)).T
        varies = (places != places[0]).any(axis=0)
        return tuple(axis for axis, yes in zip(self.axes, varies) if yes)
