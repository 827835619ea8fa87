"""The mesh as declared in a run file. An axis is one field of :class:`MeshConfig`: its record says
what it cuts, and how plans treat it."""

import dataclasses
from typing import Any

from ziggurat.core import config


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshAxis:
    """Record of a mesh axis: the logical axes that it cuts, and what its collectives carry."""

    cuts: tuple[str, ...]
    """Logical axes that lie over it unless ``mesh.rules`` says otherwise."""
    carries_tokens: bool = False
    """Whether its collectives carry activations, for which a step waits; those of weights and
    gradients run while the step computes."""
    rough_memory: bool = False
    """Whether the analytic plan's memory is within a factor of about two only (ADR 0021)."""


def _axis(default: int, *cuts: str, **settings: bool) -> Any:
    """A field of :class:`MeshConfig` with its record."""
    return dataclasses.field(default=default, metadata={"axis": MeshAxis(cuts=cuts, **settings)})


UNCUT = ("head_dim", "latent")
"""Logical axes that no mesh axis cuts by default; ``mesh.rules`` may."""


@config.node
class DcnConfig:
    """Parts of the mesh that cross slices, over the data-centre network."""

    data: int = 1
    """Replicas across slices."""
    fsdp: int = 1
    """Parameter shards across slices."""
    pipeline: int = 1
    """Pipeline stages across slices."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            size = getattr(self, field.name)
            config.require(size >= 1, field.name, size, "a number of slices >= 1")


@config.node
class MeshConfig:
    """Number of devices along each axis inside a slice; one axis may be -1, all that remain."""

    # Slowest-varying first: neighbours on the last axes are neighbours on the wire.
    pipeline: int = _axis(1, "layers")
    """Shards of the stack of layers."""
    data: int = _axis(1, "batch")
    """Replicas of the parameters; each takes its share of the batch."""
    fsdp: int = _axis(-1, "batch", "embed")
    """Shards of parameters and optimizer; each takes its share of the batch."""
    expert: int = _axis(1, "batch", "experts", rough_memory=True)
    """Shards of the experts."""
    context: int = _axis(1, "sequence", carries_tokens=True, rough_memory=True)
    """Shards of the sequence."""
    tensor: int = _axis(1, "mlp", "heads", "kv_heads", "vocab", carries_tokens=True)
    """Shards of heads, feed-forward width and vocabulary."""
    dcn: DcnConfig = dataclasses.field(default_factory=DcnConfig)
    """Parts that cross slices."""
    rules: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Logical axis -> mesh axes, replacing single default rules, e.g. ``kv_heads = []``."""

    def __post_init__(self):
        sizes = [getattr(self, axis) for axis in AXES]
        for axis, size in zip(AXES, sizes):
            config.require(size == -1 or size >= 1, axis, size, "a number >= 1, or -1 for the rest")
        config.require(sizes.count(-1) <= 1, "mesh", sizes, "at most one axis of -1")
        for name, axes in self.rules.items():
            known = ", ".join(DEFAULT_RULES)
            config.require(name in DEFAULT_RULES, "rules", name, f"a logical axis out of {known}")
            distinct = len(set(axes)) == len(axes)
            config.require(distinct, f"rules.{name}", axes, "each mesh axis at most once")
            for axis in axes:
                config.require(
                    axis in AXES, f"rules.{name}", axis, "a mesh axis: " + ", ".join(AXES)
                )


MESH_AXES: dict[str, MeshAxis] = {
    field.name: field.metadata["axis"]
    for field in dataclasses.fields(MeshConfig)
    if "axis" in field.metadata
}
"""Mesh axes by name, slowest-varying first."""
AXES = tuple(MESH_AXES)
DEFAULT_RULES: dict[str, tuple[str, ...]] = {
    logical: tuple(name for name, axis in MESH_AXES.items() if logical in axis.cuts)
    for logical in (*dict.fromkeys(cut for axis in MESH_AXES.values() for cut in axis.cuts), *UNCUT)
}
"""Logical axis -> mesh axes. Within one array a mesh axis is used once, by the first that asks."""
