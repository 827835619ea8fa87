"""A built mesh with its rules: logical axis names in, shardings out."""

import contextlib
import contextvars
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ziggurat.core.errors import ShardingError
from ziggurat.core.protocols import Device
from ziggurat.core.pytrees import map_named
from ziggurat.mesh.config import AXES, DEFAULT_RULES, MeshConfig

_log = logging.getLogger(__name__)
A = TypeVar("A")
Axes = tuple[str | None, ...]
# Only :func:`abstract` makes one without devices, and who asks for it knows.
if TYPE_CHECKING:
    AnyMesh = Mesh
else:
    AnyMesh = Mesh | AbstractMesh

_active: contextvars.ContextVar["Layout | None"] = contextvars.ContextVar("layout", default=None)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules that place arrays on it."""

    mesh: AnyMesh
    rules: Mapping[str, tuple[str, ...]]
    replicable: frozenset[str] = frozenset()
    """Logical axes that are not refused where they do not divide: another dimension of the array is
    sharded in place of theirs, or the array is replicated."""

    @property
    def platform(self) -> str:
        """Platform of the devices: ``cpu``, ``gpu`` or ``tpu``."""
        return self.mesh.devices.flat[0].platform

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each mesh axis."""
        return dict(self.mesh.shape)

    def ways(self, logical_axis: str) -> int:
        """Number of shards into which a logical axis is cut."""
        return math.prod(self.mesh.shape[axis] for axis in self.rules[logical_axis])

    def spec(self, axes: Axes) -> PartitionSpec:
        """Partition spec of an array by the logical names of its dimensions (None: replicated)."""
        used: set[str] = set()
        parts: list[str | tuple[str, ...] | None] = []
        for axis in axes:
            free = tuple(m for m in self.rules[axis] if m not in used) if axis else ()
            used.update(free)
            parts.append(free if len(free) > 1 else (free[0] if free else None))
        return PartitionSpec(*parts)

    def sharding(
        self, axes: Axes, shape: Sequence[int] | None = None, name: str = "array"
    ) -> NamedSharding:
        """Sharding of an array; with ``shape`` given, every dimension must divide, but for those of
        :attr:`replicable` axes.

        Raises:
            ShardingError: a dimension does not divide over its mesh axes.
        """
        if shape is not None and self.replicable:
            axes = self._moved(axes, shape)
        spec = self.spec(axes)
        for position, part in enumerate(spec if shape is not None else ()):
            mesh_axes = part if isinstance(part, tuple) else (part,) if part else ()
            ways = math.prod(self.mesh.shape[axis] for axis in mesh_axes)
            if shape is not None and shape[position] % ways:
                self._refuse(name, str(axes[position]), shape[position], mesh_axes, ways)
        return NamedSharding(self.mesh, spec)

    def tree(self, axes: PyTree, abstract: PyTree) -> PyTree:
        """Shardings for a whole tree; ``axes`` has the same structure, with tuples as leaves."""
        return map_named(
            lambda name, leaf, names: self.sharding(names, leaf.shape, name), abstract, axes
        )

    def replicated(self) -> NamedSharding:
        """Sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def require_divides(self, what: str, sizes: Mapping[str, int]) -> None:
        """Check named dimensions (logical axis -> size), e.g. the number of heads behind ``h * c``;
        those of :attr:`replicable` axes may be anything.

        Raises:
            ShardingError: a size does not divide over its mesh axes.
        """
        for axis, size in sizes.items():
            if size % self.ways(axis) and axis not in self.replicable:
                self._refuse(what, axis, size, self.rules[axis], self.ways(axis))

    @contextlib.contextmanager
    def active(self) -> Iterator["Layout"]:
        """Place activations by this layout while tracing in this block; see :func:`constrain`."""
        token = _active.set(self)
        try:
            yield self
        finally:
            _active.reset(token)

    def _moved(self, axes: Axes, shape: Sequence[int]) -> Axes:
        """Logical axes with those of :attr:`replicable` that do not divide at another dimension,
        the last that divides and is not sharded; or at none."""
        moved = list(axes)
        for place, axis in enumerate(axes):
            if axis not in self.replicable or axis is None or shape[place] % self.ways(axis) == 0:
                continue
            moved[place] = None
            free = [
                other
                for other, name in enumerate(moved)
                if other != place and (name is None or self.ways(name) == 1)
            ]
            divided = [other for other in free if shape[other] % self.ways(axis) == 0]
            if divided:
                moved[divided[-1]] = axis
        return tuple(moved)

    def _refuse(self, name: str, axis: str, size: int, mesh_axes: Sequence[str], ways: int) -> None:
        shown = " x ".join(f"{m}={self.mesh.shape[m]}" for m in mesh_axes)
        raise ShardingError(
            f"cannot shard {name} over the mesh",
            found=f"{axis} = {size}",
            expected=f"a multiple of {ways} ({shown})",
            fix=f"change the mesh or set mesh.rules.{axis}",
        )


def build(mesh: MeshConfig, devices: Sequence[Device] | None = None) -> Layout:
    """Arrange devices (default: all) into the mesh a run file declares.

    On one slice the arrangement follows the wiring of the chips; several slices are laid along the
    ``dcn`` parts. Devices without coordinates (CPU, GPU) are laid out in order, equal runs of them
    standing for slices.

    Raises:
        ShardingError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    dcn = {axis: getattr(mesh.dcn, axis, 1) for axis in AXES}
    slices = math.prod(dcn.values())
    if len(devices) % slices:
        raise ShardingError(
            "mesh.dcn", found=f"{slices} slices", expected=f"a divisor of {len(devices)} devices"
        )
    ici = _fill(mesh, len(devices) // slices, slices)
    shape = tuple(ici[axis] * dcn[axis] for axis in AXES)
    arranged = _arrange(devices, tuple(ici.values()), tuple(dcn.values()))
    assert arranged.shape == shape
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    return Layout(Mesh(arranged, AXES, axis_types=types), {**DEFAULT_RULES, **mesh.rules})


def abstract(mesh: MeshConfig, count: int) -> Layout:
    """Build the layout of ``count`` devices that need not exist, to see what divides over them.

    It makes shardings, but no array can be placed by it.

    Raises:
        ShardingError: the sizes do not multiply to the number of devices.

    >>> abstract(MeshConfig(data=-1, fsdp=1), 6).ways("batch")
    6
    """
    slices = math.prod(getattr(mesh.dcn, axis, 1) for axis in AXES)
    if count % slices:
        raise ShardingError(
            "mesh.dcn", found=f"{slices} slices", expected=f"a divisor of {count} devices"
        )
    ici = _fill(mesh, count // slices, slices)
    sizes = tuple(ici[axis] * getattr(mesh.dcn, axis, 1) for axis in AXES)
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    nowhere: Any = AbstractMesh(sizes, AXES, axis_types=types)
    return Layout(nowhere, {**DEFAULT_RULES, **mesh.rules})


def active_layout() -> Layout | None:
    """The layout under which a function is being traced; ``None`` outside :meth:`Layout.active`."""
    return _active.get()


def active_ways(logical_axis: str) -> int:
    """Number of shards of a logical axis under the active layout; 1 without one."""
    layout = _active.get()
    return 1 if layout is None else layout.ways(logical_axis)


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Place an activation by logical axis names; does nothing outside :meth:`Layout.active`.

    Raises:
        ShardingError: a dimension, e.g. the batch, does not divide over its mesh axes.
    """
    layout = _active.get()
    if layout is None or layout.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, layout.sharding(axes, x.shape, "an activation"))


def _fill(mesh: MeshConfig, per_slice: int, slices: int) -> dict[str, int]:
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and per_slice % known == 0:
        sizes = {a: per_slice // known if size == -1 else size for a, size in sizes.items()}
    if math.prod(sizes.values()) != per_slice:
        shown = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1)
        where = f"{per_slice} devices" + (f" in each of {slices} slices" if slices > 1 else "")
        raise ShardingError(
            "mesh",
            found=shown or "1 device",
            expected=f"a product of {where}",
            fix="set one axis to -1 to take what remains",
        )
    return sizes


def _arrange(devices: list[Device], ici: tuple[int, ...], dcn: tuple[int, ...]) -> np.ndarray:
    from jax.experimental import mesh_utils

    if getattr(devices[0], "coords", None) is None:
        return _in_order(devices, ici, dcn)
    try:
        if math.prod(dcn) > 1:
            return mesh_utils.create_hybrid_device_mesh(
                ici, dcn, devices, allow_split_physical_axes=True
            )
        return mesh_utils.create_device_mesh(ici, devices, allow_split_physical_axes=True)
    except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
        # mesh_utils (jax 0.10) cannot split every physical axis, such as the 20 of 20x4x4 or 28
        line = str(error).partition("\n")[0][:100]
        _log.info("mesh laid out in the order of the chips' coordinates (mesh_utils: %s)", line)
        return _in_order(sorted(devices, key=_place), ici, dcn)


def _in_order(devices: list[Device], ici: tuple[int, ...], dcn: tuple[int, ...]) -> np.ndarray:
    """Devices in the order given: equal runs are slices, neighbours lie on the last axes."""
    shape = tuple(i * d for i, d in zip(ici, dcn))
    axes = range(len(AXES))
    pairs = [axis for part in zip(axes, (len(AXES) + a for a in axes)) for axis in part]
    return np.array(devices).reshape(*dcn, *ici).transpose(pairs).reshape(shape)


def _place(device: Any) -> tuple[int, ...]:
    """Slice, coordinates and core, by which chips next to each other are near in order."""
    slice_index, core = getattr(device, "slice_index", 0), getattr(device, "core_on_chip", 0)
    return (slice_index, *device.coords, core)
