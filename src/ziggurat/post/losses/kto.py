"""Kahneman-Tversky optimisation: learning from answers that are good or bad, without pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def kto(
    log_ratio: Float[Array, " b"],
    desirable: Bool[Array, " b"],
    kl: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, " b"]:
    r"""Loss of each answer, between 0 and its weight.

    With :math:`r = \log \pi(y|x) - \log \pi_{ref}(y|x)` and the reference point :math:`z_0`:

    .. math::

        L = \lambda_D (1 - \sigma(\beta (r - z_0))) \text{ if } y \text{ is desirable, else }
            \lambda_U (1 - \sigma(\beta (z_0 - r)))

    Args:
        log_ratio: :math:`r` of each answer, nats.
        desirable: its label.
        kl: :math:`z_0`, from :func:`reference_point`; no gradient passes through it.
        beta: how strongly the policy is held to the reference.
        desirable_weight: :math:`\lambda_D`.
        undesirable_weight: :math:`\lambda_U`.

    Reference: Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 7.

    >>> labels = jnp.array([True, False])
    >>> [round(float(x), 4) for x in kto(jnp.array([2.0, 2.0]), labels, jnp.array(0.0), beta=1.0)]
    [0.1192, 0.8808]
    """
    z = jax.lax.stop_gradient(kl)
    gain = beta * jnp.where(desirable, log_ratio - z, z - log_ratio)
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1.0 - jax.nn.sigmoid(gain))


def reference_point(log_ratio: Float[Array, " b"], counted: Float[Array, " b"]) -> Float[Array, ""]:
    r"""Estimate of :math:`z_0 = \mathrm{KL}(\pi \| \pi_{ref})`, nats: the mean log-ratio of prompts
    with answers that belong to *other* prompts, at least 0; a constant to the gradient.

    Args:
        log_ratio: of such mismatched answers.
        counted: 1 for each that exists, 0 for a row of padding.

    >>> float(reference_point(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 1.0, 0.0])))
    2.0
    """
    mean = (log_ratio * counted).sum() / jnp.maximum(counted.sum(), 1.0)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))
