"""Divergences between a teacher's and a student's predictions of the next token."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def divergence(
    student: Float[Array, "*n v"],
    teacher: Float[Array, "*n v"],
    *,
    beta: float = 0.0,
    temperature: float = 1.0,
) -> Float[Array, "*n"]:
    r"""Divergence of the student's distribution from the teacher's at each token, nats.

    With :math:`p` of the teacher, :math:`q` of the student, both softened by the temperature, and
    the mixture :math:`m = \beta p + (1 - \beta) q`:

    .. math::

        \beta = 0 &: \mathrm{KL}(p \| q) \quad \text{(forward: cover what the teacher says)} \\
        \beta = 1 &: \mathrm{KL}(q \| p) \quad \text{(reverse: say only what the teacher says)} \\
        \text{else} &: \beta\, \mathrm{KL}(p \| m) + (1 - \beta)\, \mathrm{KL}(q \| m)

    Args:
        student: logits.
        teacher: logits; the caller stops their gradient.
        beta: from 0 to 1; 0.5 is the Jensen-Shannon divergence.
        temperature: divides both.

    References: Hinton et al. 2015, https://arxiv.org/abs/1503.02531; Agarwal et al. 2023 (GKD),
    https://arxiv.org/abs/2306.13649, eq. 1.

    >>> s, t = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
    >>> [round(float(divergence(s, t, beta=b)[0]), 4) for b in (0.0, 0.5, 1.0)]
    [0.1308, 0.0338, 0.1438]
    """
    q = jax.nn.log_softmax(student / temperature)
    p = jax.nn.log_softmax(teacher / temperature)
    if beta == 0.0:
        return _kl(p, q)
    if beta == 1.0:
        return _kl(q, p)
    m = jnp.logaddexp(p + np.log(beta), q + np.log1p(-beta))
    return beta * _kl(p, m) + (1.0 - beta) * _kl(q, m)


def _kl(p: Float[Array, "*n v"], q: Float[Array, "*n v"]) -> Float[Array, "*n"]:
    """KL of log-probabilities; an entry of probability 0 adds nothing."""
    there = jnp.isfinite(p)
    safe = jnp.where(there, p, 0.0)
    return jnp.where(there, jnp.exp(safe) * (safe - q), 0.0).sum(-1)
