r"""The gated delta rule in chunks: matmuls inside a chunk, a scan from chunk to chunk.

Inside a chunk with the state :math:`S_0` before it and :math:`G_i = \sum_{j \le i} g_j`, the rule
unrolls to :math:`S_i = e^{G_i} S_0 + \sum_{j \le i} e^{G_i - G_j} k_j u_j^T`, where the updates
:math:`u` solve the unit lower triangular system
:math:`u_i + \beta_i \sum_{j < i} e^{G_i - G_j} (k_i \cdot k_j) u_j
= \beta_i (v_i - e^{G_i} S_0^T k_i)`.
It is solved for both terms of the right side before the scan, so that the scan only multiplies.

Papers: Yang et al. 2024 (DeltaNet in chunks), https://arxiv.org/abs/2406.06484; Yang et al. 2024
(gated), https://arxiv.org/abs/2412.06464.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ziggurat.kernels.delta_rule.reference import State

CHUNK = 64


class _Chunk(NamedTuple):
    """One chunk of ``n`` tokens, ready for the scan: all that does not depend on the state."""

    query: Float[Array, "b h n c"]
    """Queries times the decay since the chunk began; zero where a document has begun since."""
    scores: Float[Array, "b h n n"]
    """Query times key times decay, for pairs of one document."""
    updates: Float[Array, "b h n z"]
    """Updates if the state before the chunk were zero."""
    reads: Float[Array, "b h n c"]
    """Factor of the state before the chunk; the result is taken from the updates."""
    key: Float[Array, "b h n c"]
    """Keys times the decay up to the chunk's end; zero for documents that end inside."""
    kept: Float[Array, "b h"]
    """Decay of the state over the whole chunk."""


def chunked_delta_rule(
    query: Float[Array, "b t k c"],
    key: Float[Array, "b t k c"],
    value: Float[Array, "b t h z"],
    log_decay: Float[Array, "b t h"],
    rate: Float[Array, "b t h"],
    state: State,
    starts: Bool[Array, "b t"] | None,
    *,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "b t h z"], State]:
    """Gated delta rule, ``chunk`` tokens at a time, with the arguments and results of
    :func:`ziggurat.kernels.delta_rule.delta_rule`."""
    b, t, h, z = value.shape
    padding = -t % chunk
    if starts is None:
        starts = jnp.zeros((b, t), bool)

    def split(x: Array) -> Array:
        """``[b, t, ...]`` to ``[chunks, b, n, ...]``; padding neither decays nor writes."""
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(b, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    groups = h // key.shape[2]
    wide = [x.astype(jnp.float32) for x in (query, key, value, log_decay, rate)]
    q, k, v, g, beta = (split(x).swapaxes(2, 3) for x in wide)
    q, k = (jnp.repeat(x, groups, axis=2) for x in (q, k))
    parts = jax.vmap(_prepare)(q, k, v, g, beta, split(starts))

    def step(state: State, part: _Chunk) -> tuple[State, Array]:
        update = part.updates - part.reads @ state
        out = part.query @ state + part.scores @ update
        after = state * part.kept[:, :, None, None] + part.key.swapaxes(2, 3) @ update
        return after, out

    state, out = jax.lax.scan(step, state.astype(jnp.float32), parts)
    out = out.transpose(1, 0, 3, 2, 4).reshape(b, t + padding, h, z)[:, :t]
    return out.astype(value.dtype), state


def _prepare(
    q: Float[Array, "b h n c"],
    k: Float[Array, "b h n c"],
    v: Float[Array, "b h n z"],
    g: Float[Array, "b h n"],
    beta: Float[Array, "b h n"],
    starts: Bool[Array, "b n"],
) -> _Chunk:
    n = g.shape[-1]
    total = jnp.cumsum(g, axis=-1)
    document = jnp.cumsum(starts, axis=-1)[:, None]
    first, last = document == 0, document == document[..., -1:]
    lower = jnp.tri(n, dtype=bool)[None, None]
    # Decays are never above one: what is masked is masked before the exponential.
    same = (document[..., :, None] == document[..., None, :]) & lower
    decay = jnp.where(
        same, jnp.exp(jnp.where(same, total[..., :, None] - total[..., None, :], 0)), 0
    )
    since = jnp.where(first, jnp.exp(jnp.where(first, total, 0)), 0)
    until = jnp.where(last, jnp.exp(jnp.where(last, total[..., -1:] - total, 0)), 0)
    dots = jnp.einsum("bhic,bhjc->bhij", k, k)
    system = jnp.tril(dots * decay * beta[..., None], -1) + jnp.eye(n)[None, None]
    right = jnp.concatenate([v * beta[..., None], k * (beta * since)[..., None]], axis=-1)
    solved = jax.scipy.linalg.solve_triangular(system, right, lower=True, unit_diagonal=True)
    updates, reads = jnp.split(solved, [v.shape[-1]], axis=-1)
    scores = jnp.einsum("bhic,bhjc->bhij", q, k) * decay
    kept = since[..., -1]
    return _Chunk(q * since[..., None], scores, updates, reads, k * until[..., None], kept)
