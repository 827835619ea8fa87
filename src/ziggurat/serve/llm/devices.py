"""The mesh that an engine runs on: which devices, and what lies where.

Weights, key/value cache and recurrent states are sharded by their logical axes, rows of a step are
on every device: a decoding step has few rows, and their number need not divide. Experts lie over
the axis ``expert``, heads, feed-forward width and vocabulary over ``tensor``. Key/value heads are
repeated and the vocabulary is padded where they do not divide, see
:mod:`ziggurat.models.divisible`.

>>> sizes_of("tensor=2,expert=2")
{'tensor': 2, 'expert': 2}
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from ziggurat import mesh as mesh_
from ziggurat.core import config
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.core.protocols import Device
from ziggurat.kernels.placement import platform
from ziggurat.mesh import Layout, MeshConfig
from ziggurat.models import LanguageModel
from ziggurat.models.divisible import REPLICABLE, divisible

MeshChoice = str | Mapping[str, int] | MeshConfig | Layout
"""Forms in which a mesh is given: ``"tensor=2,expert=2"``, its sizes by axis, as in a run file's
``[mesh]``, or a built one."""
SHARDING_AXES = ("expert", "tensor")
"""Mesh axes that inference uses."""


def sizes_of(text: str) -> dict[str, int]:
    """Sizes of mesh axes as the command line has them, ``AXIS=SIZE`` with commas between.

    Raises:
        ConfigError: it has another form, or an axis comes twice.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if not size.removeprefix("-").isdecimal() or axis in sizes:
            expected = "AXIS=SIZE once for each axis, such as tensor=2,expert=2"
            raise ConfigError("mesh", found=repr(text), expected=expected)
        sizes[axis] = int(size)
    return sizes


def serving_layout(mesh: MeshChoice, devices: Sequence[Device] | None = None) -> Layout:
    """The layout of an engine on a mesh: the first devices, as many as its sizes multiply to.

    Args:
        mesh: what was asked for; an axis that is not given has one device, one of -1 takes all that
            remain.
        devices: those there are; default all.

    Raises:
        ConfigError: an axis is unknown, or has no use in inference.
        ShardingError: the mesh needs more devices than there are.
    """
    if isinstance(mesh, Layout):
        return _for_inference(mesh)
    if isinstance(mesh, MeshConfig):
        given = dataclasses.replace(mesh, fsdp=1) if mesh.fsdp == -1 else mesh
    else:
        sizes = sizes_of(mesh) if isinstance(mesh, str) else dict(mesh)
        given = config.from_plain(MeshConfig, {"fsdp": 1, **sizes}, "mesh")
    there = list(jax.devices() if devices is None else devices)
    for axis in mesh_.AXES:
        if axis not in SHARDING_AXES and getattr(given, axis) * getattr(given.dcn, axis, 1) != 1:
            raise ConfigError(
                f"mesh.{axis}",
                found=getattr(given, axis),
                expected="1 where a model is served: " + " and ".join(SHARDING_AXES) + " shard it",
            )
    return _for_inference(mesh_.build(given, there[: _count(given, len(there))]))


def check_divides(model: LanguageModel, layout: Layout) -> None:
    """Refuse a mesh over which a model does not divide, and name the sizes that do.

    Args:
        model: the model.
        layout: what :func:`serving_layout` gave.

    Raises:
        ShardingError: heads, experts or the feed-forward width do not divide.
    """
    if layout.sizes["expert"] > 1 and not model.has_experts:
        raise ShardingError(
            "mesh.expert",
            found=f"{layout.sizes['expert']} and a model without experts",
            expected="1",
            fix="shard it with tensor",
        )
    try:
        _try(model, layout)
    except ShardingError as error:
        sizes, count = layout.sizes, layout.mesh.size
        for axis in SHARDING_AXES:
            others = {name: size for name, size in sizes.items() if name != axis}
            most = max(count, len(jax.devices())) // math.prod(others.values())
            found = [size for size in range(2, most + 1) if _divides(model, layout, axis, size)]
            if sizes[axis] > 1 and found:
                raise ShardingError(
                    error.what,
                    found=error.found,
                    expected=error.expected,
                    fix=f"{axis}={_listed(found)} divides the model",
                ) from None
        raise ShardingError(
            error.what, found=error.found, expected=error.expected, fix="use one device"
        ) from None


def _listed(sizes: Sequence[int]) -> str:
    *others, last = map(str, sizes)
    return f"{', '.join(others)} or {last}" if others else last


def _for_inference(layout: Layout) -> Layout:
    rules = {**layout.rules, "batch": (), "embed": ()}
    return Layout(layout.mesh, rules, REPLICABLE)


def _count(given: MeshConfig, devices: int) -> int:
    """Devices that a mesh takes."""
    sizes = {axis: getattr(given, axis) for axis in SHARDING_AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    needed = devices // known * known if -1 in sizes.values() else known
    if known > devices:
        kind = platform()
        flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={known}"
        shown = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1)
        raise ShardingError(
            f"mesh {shown}",
            found=f"{devices} {kind} device{'s' if devices > 1 else ''}",
            expected=f"{known} devices",
            fix=f"{flag} makes virtual ones" if kind == "cpu" else "",
        )
    return needed


def _divides(model: LanguageModel, layout: Layout, axis: str, size: int) -> bool:
    sizes = dict.fromkeys(mesh_.AXES, 1) | layout.sizes | {axis: size}
    given = config.from_plain(MeshConfig, sizes, "mesh")
    other = mesh_.abstract(given, math.prod(sizes.values()))
    try:
        _try(model, Layout(other.mesh, layout.rules, layout.replicable))
    except ShardingError:
        return False
    return True


def _try(model: LanguageModel, layout: Layout) -> None:
    model.shardings(layout)
    divisible(model, layout)
