"""The state-space recurrence, token by token: the definition, and the fast form for one token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

State = Float[Array, "b h c z"]


def reference_state_space(
    query: Float[Array, "b t g c"],
    key: Float[Array, "b t g c"],
    value: Float[Array, "b t h z"],
    log_decay: Float[Array, "b t h"],
    state: State,
    starts: Bool[Array, "b t"] | None,
) -> tuple[Float[Array, "b t h z"], State]:
    """A scan over the tokens, in float32. See :func:`ziggurat.kernels.state_space.state_space`."""
    heads = value.shape[2] // key.shape[2]

    def step(state: State, token: tuple[Array, ...]) -> tuple[State, Array]:
        q, k, v, decay, begins = token
        q, k = (jnp.repeat(x, heads, axis=1) for x in (q, k))
        decay = jnp.where(begins[:, None], 0.0, jnp.exp(decay))
        state = state * decay[:, :, None, None] + k[..., None] * v[:, :, None]
        return state, jnp.einsum("bhcz,bhc->bhz", state, q)

    if starts is None:
        starts = jnp.zeros(query.shape[:2], bool)
    wide = [x.astype(jnp.float32) for x in (query, key, value, log_decay)]
    tokens = [x.swapaxes(0, 1) for x in (*wide, starts)]
    state, out = jax.lax.scan(step, state.astype(jnp.float32), tuple(tokens))
    return out.swapaxes(0, 1).astype(value.dtype), state
