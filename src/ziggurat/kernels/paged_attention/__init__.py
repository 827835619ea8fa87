"""Attention of new tokens through a paged key/value cache, several sequences together."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from ziggurat.core.registry import Registry
from ziggurat.kernels.key_values import KeyValues
from ziggurat.kernels.paged_attention.cpu import cpu_paged_attention, serves
from ziggurat.kernels.paged_attention.reference import (
    SINK,
    Rows,
    reference_paged_attention,
)

__all__ = ["IMPLEMENTATIONS", "SINK", "Rows", "paged_attention"]

IMPLEMENTATIONS: Registry[Callable[..., tuple[Array, KeyValues]]] = Registry(
    "paged attention implementation"
)
IMPLEMENTATIONS.add("reference", reference_paged_attention)
IMPLEMENTATIONS.add("cpu", cpu_paged_attention)


def paged_attention(
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
    implementation: str = "auto",
    **options: Any,
) -> tuple[Float[Array, "b t h z"], KeyValues]:
    r"""Attention :math:`\mathrm{softmax}(s\,QK^T + M)V` of new tokens over all of their sequence,
    themselves included, and the cache with their keys and values.

    Args:
        query: the new tokens' queries; ``h`` is a multiple of ``k``.
        key: their keys, which join the cache; ``None``: nothing is written, since the cache has the
            new tokens already, from an earlier layer.
        value: their values, ``None`` with ``key``; channels ``z`` may be others than the keys'
            ``c``.
        cache: one layer's blocks, arrays ``[k, blocks, slots, ...]``; a program that owns them
            writes in place. Heads lead: blocks gathered by a table are then laid out as the
            matmuls want them, with no transposition.
        rows: which tokens they are, and where their sequences lie.
        scale: multiplies the scores.
        softcap: if given, scores become ``softcap * tanh(scores / softcap)``.
        window: number of newest tokens seen, the query's own included; default all.
        sinks: a score per query head that joins the softmax and mixes nothing in.
        implementation: a name in :data:`IMPLEMENTATIONS`; ``auto`` is ``cpu`` where the C++ is
            there and takes these types, else ``reference``.
        options: of the implementation.

    Returns:
        The output, of no meaning for padding, and the cache.

    Raises:
        ConfigError: no such implementation.

    Paper: Kwon et al. 2023, https://arxiv.org/abs/2309.06180.
    """
    if implementation == "auto":
        own = rows.last is None  # the C++ knows no other mask
        implementation = "cpu" if own and serves(query, cache) and not options else "reference"
    return IMPLEMENTATIONS[implementation](
        query,
        key,
        value,
        cache,
        rows,
        scale=scale,
        softcap=softcap,
        window=window,
        sinks=sinks,
        **options,
    )
