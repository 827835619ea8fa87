"""A kernel that XLA cannot partition, on each device's own rows and heads."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int

from ziggurat.mesh import Layout, active_layout

Local = Callable[..., jax.Array]
"""``(query, key, value, per_row, sinks)`` of one device to its output."""


def whole_on_a_device(heads: int) -> bool:
    """Whether each device has whole rows, and with its query heads their key heads."""
    layout = active_layout()
    return layout is None or (
        layout.ways("sequence") == 1
        and layout.ways("heads") == layout.ways("kv_heads")
        and heads % layout.ways("heads") == 0
    )


def on_each_device(
    attend: Local,
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    per_row: tuple[Int[Array, "b _"] | None, ...],
    sinks: Float[Array, "h"] | None,
) -> Float[Array, "b t h z"]:
    """Run ``attend`` within ``shard_map`` if the active layout has several devices, else directly.

    Args:
        attend: the kernel.
        query: of all devices.
        key: of all devices.
        value: of all devices.
        per_row: positions and segments, cut as rows are.
        sinks: cut as heads are.
    """
    layout = active_layout()
    if layout is None or layout.mesh.size == 1:
        return attend(query, key, value, per_row, sinks)
    return _mapped(attend, layout, query, key, value, per_row, sinks)


def _mapped(attend: Local, layout: Layout, query, key, value, per_row, sinks) -> jax.Array:
    rows = layout.spec(("batch", None))
    q = layout.spec(("batch", None, "heads", None))
    kv = layout.spec(("batch", None, "kv_heads", None))
    specs = (
        q,
        kv,
        kv,
        tuple(None if x is None else rows for x in per_row),
        None if sinks is None else layout.spec(("heads",)),
    )
    # the kernel does not say over which axes its results vary, so that cannot be checked
    local = jax.shard_map(attend, mesh=layout.mesh, in_specs=specs, out_specs=q, check_vma=False)
    return local(query, key, value, per_row, sinks)
