"""The gated delta rule: linear attention whose state forgets, and corrects what it remembers.

>>> import jax.numpy as jnp
>>> ones = jnp.ones((1, 3, 1, 2))
>>> gate = jnp.zeros((1, 3, 1))
>>> out, state = delta_rule(ones / 2**0.5, ones / 2**0.5, ones, gate, gate + 1)
>>> out.shape, state.shape
((1, 3, 1, 2), (1, 1, 2, 2))
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ziggurat.core.errors import ShapeError
from ziggurat.core.registry import Registry
from ziggurat.kernels.delta_rule.chunked import chunked_delta_rule
from ziggurat.kernels.delta_rule.reference import State, reference_delta_rule

__all__ = ["IMPLEMENTATIONS", "delta_rule"]

IMPLEMENTATIONS: Registry[Callable[..., tuple[Array, Array]]] = Registry(
    "delta rule implementation"
)
IMPLEMENTATIONS.add("reference", reference_delta_rule)
IMPLEMENTATIONS.add("chunked", chunked_delta_rule)


def delta_rule(
    query: Float[Array, "b t k c"],
    key: Float[Array, "b t k c"],
    value: Float[Array, "b t h z"],
    log_decay: Float[Array, "b t h"],
    rate: Float[Array, "b t h"],
    state: State | None = None,
    starts: Bool[Array, "b t"] | None = None,
    *,
    implementation: str = "auto",
) -> tuple[Float[Array, "b t h z"], State]:
    r"""Gated delta rule, :math:`o_t = S_t^T q_t` with :math:`S_t = R_t + \beta_t k_t (v_t - R_t^T
    k_t)^T` and :math:`R_t = e^{g_t} S_{t-1}`.

    Args:
        query: queries; each key head serves ``h / k`` consecutive value heads.
        key: keys, of length one if the rule is to be stable.
        value: values.
        log_decay: :math:`g \le 0`.
        rate: :math:`\beta`, from 0 (the token writes nothing) to 1.
        state: :math:`S` before the first token; zero by default.
        starts: tokens with which a document begins: the state before them is forgotten.
        implementation: ``auto``, or a name of :data:`IMPLEMENTATIONS`; ``auto`` is ``reference``
            for one token and ``chunked`` for more.

    Returns:
        The outputs, in the type of ``value``, and the state after the last token in float32.

    Raises:
        ShapeError: value heads are no multiple of key heads.
        ConfigError: no such implementation.

    Paper: Yang et al. 2024, https://arxiv.org/abs/2412.06464.
    """
    b, t, h, z = value.shape
    if h % key.shape[2]:
        raise ShapeError(
            "delta rule",
            found=f"{h} value heads",
            expected=f"a multiple of {key.shape[2]} key heads",
        )
    if state is None:
        state = jnp.zeros((b, h, key.shape[3], z), jnp.float32)
    if implementation == "auto":
        implementation = "reference" if t == 1 else "chunked"
    return IMPLEMENTATIONS[implementation](query, key, value, log_decay, rate, state, starts)
