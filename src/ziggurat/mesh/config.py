"""The mesh as declared in a run file."""

import dataclasses

from ziggurat.core import config

AXES = ("pipeline", "data", "fsdp", "expert", "context", "tensor")
"""Mesh axes, slowest-varying first: neighbours on the last axes are neighbours on the wire."""

DEFAULT_RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "sequence": ("context",),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "layers": ("pipeline",),
    "head_dim": (),
    "latent": (),
}
"""Logical axis -> mesh axes. Within one array a mesh axis is used once, by the first that asks."""


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

    data: int = 1
    """Replicas of the parameters; each takes its share of the batch."""
    fsdp: int = -1
    """Shards of parameters and optimizer; each takes its share of the batch."""
    context: int = 1
    """Shards of the sequence."""
    tensor: int = 1
    """Shards of heads, feed-forward width and vocabulary."""
    expert: int = 1
    """Shards of the experts."""
    pipeline: int = 1
    """Shards of the stack of layers."""
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
