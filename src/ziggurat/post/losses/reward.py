"""The loss of reward models: the better answer should score higher."""

import jax
from jaxtyping import Array, Float


def bradley_terry(
    chosen: Float[Array, " b"],
    rejected: Float[Array, " b"],
    *,
    margin: Float[Array, " b"] | None = None,
    centering: float = 0.0,
) -> Float[Array, " b"]:
    r"""Loss of each pair of scores, nats.

    .. math::

        L = -\log \sigma(s_w - s_l - m) + c (s_w + s_l)^2

    Args:
        chosen: score :math:`s_w` of each chosen answer.
        rejected: score :math:`s_l` of each rejected one.
        margin: by how much the first should exceed the second, :math:`m`; default 0.
        centering: :math:`c`, which draws scores towards a mean of 0.

    References: Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1; Touvron et al. 2023
    (margin), https://arxiv.org/abs/2307.09288, eq. 2; Eisenstein et al. 2023 (centering),
    https://arxiv.org/abs/2312.09244.

    >>> import jax.numpy as jnp
    >>> round(float(bradley_terry(jnp.ones(1), jnp.zeros(1))[0]), 4)
    0.3133
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -jax.nn.log_sigmoid(difference)
    return loss + centering * (chosen + rejected) ** 2 if centering else loss
