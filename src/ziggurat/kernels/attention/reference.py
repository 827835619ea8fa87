"""Attention in plain jax.numpy: the form to read, and the form XLA runs best."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.kernels.attention.mask import AttentionMask

SMALLEST_BLOCK, MOST_BLOCKS = 64, 16
"""Queries in a block at least, and blocks in a row at most: more blocks skip more hidden scores but
make the program longer."""
HIDDEN = -1e30
"""Score of a hidden key: finite, so that a row with no visible key gives no NaN."""


def reference_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    mask: AttentionMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Array, "h"] | None = None,
    bias: Float[Array, "*rows h t s"] | None = None,
) -> Float[Array, "b t h z"]:
    """Attention by its definition: every key head repeated for its query heads, scores held
    whole."""
    groups = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    scores = jnp.einsum("bthc,bshc->bhts", query, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        scores = scores + bias.astype(jnp.float32).reshape(-1, *bias.shape[-3:])
    sinks = None if sinks is None else sinks[None, :, None, None]
    weights = _softmax(scores, mask.dense()[:, None], softcap, sinks)
    return jnp.einsum("bhts,bshz->bthz", weights.astype(value.dtype), value)


def grouped_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    mask: AttentionMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Array, "h"] | None = None,
    bias: Float[Array, "*rows h t s"] | None = None,
) -> Float[Array, "b t h z"]:
    """Attention without repeated keys: batch dimensions lead, and query groups join the rows.

    Each matrix multiplication is then a plain batched one, ``[b, k] x [g*t, c] x [c, s]``.
    """
    b, t, h, c = query.shape
    k = key.shape[2]
    g = h // k
    q = (query * scale).reshape(b, t, k, g, c).transpose(0, 2, 3, 1, 4).reshape(b, k, g * t, c)
    scores = jnp.einsum(
        "bknc,bksc->bkns", q, key.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32
    )
    visible, scores = mask.dense()[:, None, None], scores.reshape(b, k, g, t, -1)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32).reshape(-1, k, g, *bias.shape[-2:])
    sinks = None if sinks is None else sinks.reshape(1, k, g, 1, 1)
    weights = _softmax(scores, visible, softcap, sinks)
    weights = weights.astype(value.dtype).reshape(b, k, g * t, -1)
    out = jnp.einsum("bkns,bksz->bknz", weights, value.transpose(0, 2, 1, 3))
    return out.reshape(b, k, g, t, -1).transpose(0, 3, 1, 2, 4).reshape(b, t, h, -1)


def blocked_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s k c"],
    value: Float[Array, "b s k z"],
    mask: AttentionMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Array, "h"] | None = None,
) -> Float[Array, "b t h z"]:
    """Attention for aligned masks by blocks of queries, each against only the keys that it can see.

    It computes nearly half of the multiplications and half of the scores. On XLA:CPU forward and
    backward together are about 1.4 times as fast (``benchmarks/attention.py``).
    """
    length = query.shape[1]
    size = max(SMALLEST_BLOCK, -(-length // MOST_BLOCKS))
    outputs = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        part, columns = mask.block(start, stop)
        outputs.append(
            grouped_attention(
                query[:, start:stop],
                key[:, columns],
                value[:, columns],
                part,
                scale=scale,
                softcap=softcap,
                sinks=sinks,
            )
        )
    return jnp.concatenate(outputs, axis=1)


def _softmax(
    scores: jax.Array, visible: jax.Array, softcap: float | None, sinks: jax.Array | None
) -> jax.Array:
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(visible, scores, HIDDEN)
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    sinks = sinks.astype(scores.dtype)
    peak = jax.lax.stop_gradient(jnp.maximum(scores.max(-1, keepdims=True), sinks))
    weights = jnp.exp(scores - peak)
    return weights / (weights.sum(-1, keepdims=True) + jnp.exp(sinks - peak))
