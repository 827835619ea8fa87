"""Direct preference optimisation and its variants, over whole answers' log-probabilities."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.core.errors import ConfigError

DpoKind = Literal["sigmoid", "robust", "ipo", "hinge"]
"""How a pair's log-ratio becomes its loss, see :func:`dpo`."""


def dpo(
    chosen: Float[Array, " b"],
    rejected: Float[Array, " b"],
    reference_chosen: Float[Array, " b"],
    reference_rejected: Float[Array, " b"],
    *,
    beta: float,
    kind: DpoKind = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_tokens: Float[Array, " b"] | None = None,
    rejected_tokens: Float[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    r"""Loss of each pair of answers, nats (of ``ipo``: squared log-ratio per token).

    With :math:`r_w = \log \pi(y_w|x) - \log \pi_{ref}(y_w|x)` of the chosen answer, :math:`r_l` of
    the rejected one, :math:`\delta = r_w - r_l` and a chance :math:`\epsilon` that a label is
    wrong:

    .. math::

        \text{sigmoid} &: -(1-\epsilon) \log \sigma(\beta\delta)
            - \epsilon \log \sigma(-\beta\delta) \\
        \text{robust} &: \frac{-(1-\epsilon) \log \sigma(\beta\delta)
            + \epsilon \log \sigma(-\beta\delta)}{1 - 2\epsilon} \\
        \text{ipo} &: \left(r_w / n_w - r_l / n_l - 1 / (2\beta)\right)^2 \\
        \text{hinge} &: \max(0, 1 - \beta\delta)

    ``sigmoid`` with :math:`\epsilon > 0` is conservative DPO. ``ipo`` divides by the answers'
    numbers of tokens, as its authors do in their experiments; beta is their tau.

    Args:
        chosen: log-probability of each chosen answer under the policy, nats, summed over tokens.
        rejected: of each rejected answer.
        reference_chosen: of the chosen answer under the frozen reference.
        reference_rejected: of the rejected one.
        beta: how strongly the policy is held to the reference.
        kind: which loss.
        label_smoothing: :math:`\epsilon`, below 0.5; of ``sigmoid`` and ``robust`` only.
        chosen_tokens: tokens of the chosen answers; ``ipo`` needs them.
        rejected_tokens: of the rejected ones.

    Raises:
        ConfigError: smoothing of a kind that has none, or ``ipo`` without numbers of tokens.

    References:
        Rafailov et al. 2023 (DPO), https://arxiv.org/abs/2305.18290, eq. 7; Mitchell 2023 (cDPO),
        https://ericmitchell.ai/cdpo.pdf; Chowdhury et al. 2024 (robust DPO),
        https://arxiv.org/abs/2403.00409, eq. 9; Azar et al. 2023 (IPO),
        https://arxiv.org/abs/2310.12036, eq. 17; Zhao et al. 2023 (hinge),
        https://arxiv.org/abs/2305.10425.

    >>> one = jnp.ones(1)
    >>> [round(float(dpo(x * one, 0 * one, 0 * one, 0 * one, beta=0.5)[0]), 4) for x in (0, 2, 4)]
    [0.6931, 0.3133, 0.1269]
    """
    if label_smoothing and kind not in ("sigmoid", "robust"):
        raise ConfigError(
            f"dpo {kind}: label_smoothing", found=label_smoothing, expected="0 for this kind"
        )
    win, lose = chosen - reference_chosen, rejected - reference_rejected
    scaled = beta * (win - lose)
    right, wrong = -jax.nn.log_sigmoid(scaled), -jax.nn.log_sigmoid(-scaled)
    if kind == "sigmoid":
        return (1.0 - label_smoothing) * right + label_smoothing * wrong
    if kind == "robust":
        clean = (1.0 - label_smoothing) * right - label_smoothing * wrong
        return clean / (1.0 - 2.0 * label_smoothing)
    if kind == "hinge":
        return jax.nn.relu(1.0 - scaled)
    if chosen_tokens is None or rejected_tokens is None:
        raise ConfigError("dpo ipo", found="no numbers of tokens", expected="those of both answers")
    per_token = win / jnp.maximum(chosen_tokens, 1.0) - lose / jnp.maximum(rejected_tokens, 1.0)
    return (per_token - 1.0 / (2.0 * beta)) ** 2
