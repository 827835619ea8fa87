r"""The state-space recurrence in chunks: matmuls inside a chunk, a scan from chunk to chunk.

Inside a chunk with the state :math:`S_0` before it and :math:`G_i = \sum_{j \le i} g_j`, the
recurrence unrolls to :math:`S_i = e^{G_i} S_0 + \sum_{j \le i} e^{G_i - G_j} k_j v_j^T`:
attention without softmax whose scores decay, and a read of the state before. Its time is linear in
the length.

Paper: Dao and Gu 2024 (state-space duality), https://arxiv.org/abs/2405.21060, section 6.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ziggurat.kernels.state_space.reference import State

CHUNK = 64


def chunked_state_space(
    query: Float[Array, "b t g c"],
    key: Float[Array, "b t g c"],
    value: Float[Array, "b t h z"],
    log_decay: Float[Array, "b t h"],
    state: State,
    starts: Bool[Array, "b t"] | None,
    *,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "b t h z"], State]:
    """State-space recurrence, ``chunk`` tokens at a time, with the arguments and results of
    :func:`ziggurat.kernels.state_space.state_space`."""
    b, t, h, z = value.shape
    groups, c = key.shape[2:]
    padding = -t % chunk
    if starts is None:
        starts = jnp.zeros((b, t), bool)

    def split(x: Array, *heads: int) -> Array:
        """``[b, t, ...]`` to ``[chunks, b, n, ...]``; padding neither decays nor writes."""
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(b, -1, chunk, *heads).swapaxes(0, 1)

    q, k, v, g = (x.astype(jnp.float32) for x in (query, key, value, log_decay))
    parts = (
        split(q, groups, c),
        split(k, groups, c),
        split(v, groups, h // groups, z),
        split(g, groups, h // groups),
        split(starts),
    )
    # What a chunk computes is computed again for the backward pass: its scores of all heads take
    # more memory than its inputs and the state before it.
    step = jax.checkpoint(_chunk, prevent_cse=False)
    grouped = state.astype(jnp.float32).reshape(b, groups, h // groups, c, z)
    after, out = jax.lax.scan(step, grouped, parts)
    out = out.swapaxes(0, 1).reshape(b, t + padding, h, z)[:, :t]
    return out.astype(value.dtype), after.reshape(b, h, c, z)


def _chunk(
    state: Float[Array, "b g r c z"], part: tuple[Array, ...]
) -> tuple[Float[Array, "b g r c z"], Float[Array, "b n g r z"]]:
    """State after a chunk, and its outputs; each of ``g`` groups has ``r`` heads."""
    q, k, v, g, starts = part
    n = g.shape[1]
    total = jnp.moveaxis(jnp.cumsum(g, axis=1), 1, -1)  # [b, g, r, n]
    document = jnp.cumsum(starts, axis=-1)[:, None, None]
    first, last = document == 0, document == document[..., -1:]
    # Decays are never above one: what is masked is masked before the exponential.
    earlier = jnp.tri(n, dtype=bool)[None, None, None]
    same = (document[..., :, None] == document[..., None, :]) & earlier
    between = jnp.where(same, total[..., :, None] - total[..., None, :], 0)
    decay = jnp.where(same, jnp.exp(between), 0)
    since = jnp.where(first, jnp.exp(jnp.where(first, total, 0)), 0)
    until = jnp.where(last, jnp.exp(jnp.where(last, total[..., -1:] - total, 0)), 0)
    scores = jnp.einsum("bngc,bmgc->bgnm", q, k)[:, :, None] * decay
    out = jnp.einsum("bgrnm,bmgrz->bngrz", scores, v)
    out += jnp.einsum("bngc,bgrcz,bgrn->bngrz", q, state, since)
    written = jnp.einsum("bngc,bngrz->bgrcz", k, v * jnp.moveaxis(until, -1, 1)[..., None])
    return state * since[..., -1:, None] + written, out
