"""The state-space recurrence of Mamba-2: linear attention whose state decays by head and token.

>>> import jax.numpy as jnp
>>> ones = jnp.ones((1, 3, 1, 2))
>>> out, state = state_space(ones, ones, ones, jnp.zeros((1, 3, 1)))
>>> out[0, :, 0, 0]
Array([2., 4., 6.], dtype=float32)
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ziggurat.core.errors import ShapeError
from ziggurat.core.registry import Registry
from ziggurat.kernels.state_space.chunked import chunked_state_space
from ziggurat.kernels.state_space.reference import State, reference_state_space

__all__ = ["IMPLEMENTATIONS", "state_space"]

IMPLEMENTATIONS: Registry[Callable[..., tuple[Array, Array]]] = Registry(
    "state-space implementation"
)
IMPLEMENTATIONS.add("reference", reference_state_space)
IMPLEMENTATIONS.add("chunked", chunked_state_space)


def state_space(
    query: Float[Array, "b t g c"],
    key: Float[Array, "b t g c"],
    value: Float[Array, "b t h z"],
    log_decay: Float[Array, "b t h"],
    state: State | None = None,
    starts: Bool[Array, "b t"] | None = None,
    *,
    implementation: str = "auto",
) -> tuple[Float[Array, "b t h z"], State]:
    r"""State-space recurrence :math:`o_t = S_t^T q_t` with :math:`S_t = e^{g_t} S_{t-1} + k_t
    v_t^T`.

    In the paper's letters ``query`` is :math:`C`, ``key`` is :math:`B`, ``value`` is :math:`\Delta
    x` and ``log_decay`` is :math:`\Delta A`.

    Args:
        query: how a token reads the state; each group serves ``h / g`` consecutive heads.
        key: where a token writes to the state.
        value: what it writes; zero writes nothing.
        log_decay: :math:`g \le 0`.
        state: :math:`S` before the first token; zero by default.
        starts: tokens with which a document begins: the state before them is forgotten.
        implementation: ``auto``, or a name of :data:`IMPLEMENTATIONS`; ``auto`` is ``reference``
            for one token and ``chunked`` for more.

    Returns:
        The outputs, in the type of ``value``, and the state after the last token in float32.

    Raises:
        ShapeError: heads are no multiple of groups.
        ConfigError: no such implementation.

    Paper: Dao and Gu 2024, https://arxiv.org/abs/2405.21060.
    """
    b, t, h, z = value.shape
    if h % key.shape[2]:
        raise ShapeError(
            "state-space recurrence",
            found=f"{h} heads",
            expected=f"a multiple of {key.shape[2]} groups",
        )
    if state is None:
        state = jnp.zeros((b, h, key.shape[3], z), jnp.float32)
    if implementation == "auto":
        implementation = "reference" if t == 1 else "chunked"
    return IMPLEMENTATIONS[implementation](query, key, value, log_decay, state, starts)
