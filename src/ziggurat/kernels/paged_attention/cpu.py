"""Paged attention in C++ on CPUs: keys and values are read where they lie, those of a head once for
all the query heads that share it, and new ones are written into the same memory."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.kernels.cpu.operation import operation, usable
from ziggurat.kernels.key_values import KeyValues
from ziggurat.kernels.paged_attention.reference import Rows, reference_paged_attention


def serves(query: Float[Array, "b t h c"], cache: KeyValues) -> bool:
    """Whether the C++ kernel is built and supports these types."""
    return not cache.rounded and usable("paged_attention", query, cache.keys, cache.values)


def cpu_paged_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b t k c"] | None,
    value: Float[Array, "b t k z"] | None,
    cache: KeyValues,
    rows: Rows,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    sinks: Float[Array, "h"] | None = None,
) -> tuple[Float[Array, "b t h z"], KeyValues]:
    """Paged attention in C++, with the arguments and results of
    :func:`ziggurat.kernels.paged_attention.paged_attention`. Queries of padding give zeros,
    and padding is written nowhere."""
    if key is None or value is None:  # no tokens: nothing to write
        k, z = cache.values.shape[0], cache.values.shape[3]
        key, value = jnp.zeros((0, 0, k, query.shape[3])), jnp.zeros((0, 0, k, z))
    sinks = jnp.zeros(0) if sinks is None else sinks.astype(jnp.float32)
    rules = {"scale": float(scale), "softcap": float(softcap or 0), "window": window or 0}
    out, *after = _attend(query, key, value, cache.keys, cache.values, *rows[:3], sinks, **rules)
    return out, KeyValues(*after)


def _shapes(
    query: Any,
    key: Any,
    value: Any,
    keys: Any,
    values: Any,
    *rest: Any,
    **rules: Any,
) -> list[jax.ShapeDtypeStruct]:
    out = (*query.shape[:3], values.shape[3])
    kept = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys, values)]
    return [jax.ShapeDtypeStruct(out, query.dtype), *kept]


def _plain(
    query: Any,
    key: Any,
    value: Any,
    keys: Any,
    values: Any,
    tables: Array,
    positions: Array,
    counts: Array,
    sinks: Array,
    *,
    scale: float,
    softcap: float,
    window: int,
) -> list[Array]:
    out, cache = reference_paged_attention(
        query,
        key if key.size else None,
        value if key.size else None,
        KeyValues(keys, values),
        Rows(tables, positions, counts),
        scale=scale,
        softcap=softcap or None,
        window=window or None,
        sinks=sinks if sinks.size else None,
    )
    return [out, cache.keys, cache.values]


_attend = operation("paged_attention", _shapes, _plain, aliases={3: 1, 4: 2})
