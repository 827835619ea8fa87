r"""Losses of reinforcement learning on sampled completions: GRPO and its kin by switches.

One surrogate carries them all. With the ratio :math:`\rho_{it}` of the policy to the one that
sampled, advantages :math:`A_i` and the mask :math:`m_{it}` of completion tokens,

.. math::

    \ell_{it} = -w_{it} \min\!\big(\rho_{it} A_i,\;
        \mathrm{clip}(\rho_{it}, 1 - \epsilon_\text{low}, 1 + \epsilon_\text{high}) A_i\big)
        + \beta \, k_3(\pi_\text{ref}, \pi)_{it}

========== =============================================================================== ========
paper      switches                                                                        source
========== =============================================================================== ========
GRPO       ``aggregate="sequence"``, advantages over the group's deviation                 [1]_
Dr.GRPO    ``aggregate="constant"``, ``scale="none"``                                      [2]_
DAPO       ``aggregate="token"``, ``clip_high=0.28``, equal groups left out, overlong cost [3]_
GSPO       ``ratio="sequence"``                                                            [4]_
RLOO       ``ratio="product"``, ``baseline="leave_one_out"``, ``scale="none"``, the KL in  [5]_
           the reward (:func:`penalised`)
TIS        ``sampler_cap``: :math:`w` corrects for a sampler that is not the trainer       [6]_
========== =============================================================================== ========

.. [1] Shao et al. 2024, "DeepSeekMath", https://arxiv.org/abs/2402.03300, equation 3
.. [2] Liu et al. 2025, "Understanding R1-Zero-like training", https://arxiv.org/abs/2503.20783
.. [3] Yu et al. 2025, "DAPO", https://arxiv.org/abs/2503.14476, equations 8 to 13
.. [4] Zheng et al. 2025, "Group sequence policy optimization", https://arxiv.org/abs/2507.18071
.. [5] Ahmadian et al. 2024, "Back to basics", https://arxiv.org/abs/2402.14740
.. [6] Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training",
   https://fengyao.notion.site/off-policy-rl
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Aggregate = Literal["sequence", "token", "constant"]
Baseline = Literal["mean", "leave_one_out"]
Scale = Literal["group", "batch", "none"]
Ratio = Literal["token", "sequence", "product"]
SMALLEST_DEVIATION = 1e-4
"""Added to the deviation that advantages are divided by, as in TRL."""
LARGEST_LOG_RATIO = 20.0
"""Bound on the log-ratio of a whole completion, so that no exponential overflows: the gradient of
an infinite ratio is NaN even where the clip cuts it off."""


class PolicySums(NamedTuple):
    """Loss and metrics of policy optimisation as sums over rows; divide each by ``weight``."""

    loss: Float[Array, ""]
    """To be differentiated."""
    weight: Float[Array, ""]
    """Rows that count; under ``aggregate="token"`` tokens that count."""
    kl: Float[Array, ""]
    """Divergence from the reference by :func:`k3`, nats a token; 0 without a reference."""
    clipped: Float[Array, ""]
    """Tokens whose gradient the clip cut off."""
    ratio: Float[Array, ""]
    """Mean ratio of probabilities: the policy's to those before the updates of this rollout."""


def policy_loss(
    log_probs: Float[Array, "b t"],
    old: Float[Array, "b t"],
    advantages: Float[Array, "b"],
    mask: Float[Array, "b t"],
    *,
    reference: Float[Array, "b t"] | None = None,
    sampler: Float[Array, "b t"] | None = None,
    kl_coef: float = 0.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: Ratio = "token",
    aggregate: Aggregate = "sequence",
    longest: int = 1,
    sampler_cap: float | None = None,
) -> PolicySums:
    r"""Clipped surrogate loss of policy optimisation (this module's page has the equation), as sums
    over rows.

    :math:`\rho_{it} = \exp(\log\pi_{it} - \log\pi^\text{old}_{it})`. There is one for a whole row
    under ``ratio="sequence"``, the exponential of the mean of the differences over its tokens
    (GSPO), and under ``ratio="product"``, that of their sum: the ratio of the probabilities of the
    completion, so that with ``aggregate="sequence"`` the gradient at a ratio of 1 is
    :math:`A_i \nabla \log\pi(y_i)`, that of REINFORCE, whatever the length (RLOO). Aggregated as

    .. math::

        L = \sum_i \frac{\sum_t m_{it} \ell_{it}}{\sum_t m_{it}}, \qquad
        L = \sum_{it} m_{it} \ell_{it}, \qquad
        L = \frac{1}{T} \sum_{it} m_{it} \ell_{it}

    for ``sequence``, ``token`` and ``constant``: divided by ``weight``, the number of rows, tokens
    and rows. A row without tokens in its mask counts as none.

    Args:
        log_probs: of the tokens under the policy, nats; differentiated.
        old: the same under the policy that began to learn from this rollout.
        advantages: one a row.
        mask: 1 where a token is the policy's own, 0 at prompts and padding.
        reference: log-probabilities under the reference policy; needed if ``kl_coef`` is not 0.
        sampler: those that the sampler drew with; needed for ``sampler_cap``.
        kl_coef: :math:`\beta`.
        clip_low: :math:`\epsilon_\text{low}`.
        clip_high: :math:`\epsilon_\text{high}`; above ``clip_low`` it is DAPO's clip-higher.
        ratio: per token, of whole completions by the mean of their tokens' log-ratios (GSPO), or by
            the sum (RLOO).
        aggregate: how tokens make one number.
        longest: :math:`T`, tokens that a completion may have; for ``constant``.
        sampler_cap: :math:`C` in the weight
            :math:`w_{it} = \min(\pi^\text{old} / \pi^\text{sampler}, C)`; ``None``: 1.

    >>> rows, mask = jnp.log(jnp.full((2, 3), 0.5)), jnp.ones((2, 3))
    >>> sums = policy_loss(rows, rows, jnp.array([1.0, -1.0]), mask)
    >>> float(sums.loss), float(sums.weight), float(sums.ratio / sums.weight)
    (0.0, 2.0, 1.0)
    """
    inside = mask > 0
    difference = jnp.where(inside, log_probs - old, 0.0)
    tokens = mask.sum(-1)
    if ratio != "token":
        whole = (difference * mask).sum(-1)
        if ratio == "sequence":
            whole /= jnp.maximum(tokens, 1.0)
        else:
            whole = jnp.clip(whole, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        difference = jnp.broadcast_to(whole[:, None], mask.shape)
    rho, gain = jnp.exp(difference), advantages[:, None]
    bounded = jnp.clip(rho, 1.0 - clip_low, 1.0 + clip_high)
    losses = -jnp.minimum(rho * gain, bounded * gain)
    if sampler_cap is not None:
        assert sampler is not None, "the sampler's log-probabilities"
        apart = jnp.where(inside, old - sampler, 0.0)
        losses *= jax.lax.stop_gradient(jnp.minimum(jnp.exp(apart), sampler_cap))
    kl = jnp.zeros_like(mask)
    if reference is not None:
        kl = k3(jnp.where(inside, log_probs, 0.0), jnp.where(inside, reference, 0.0))
        losses += kl_coef * kl
    cut = ((rho < 1.0 - clip_low) & (gain < 0)) | ((rho > 1.0 + clip_high) & (gain > 0))

    def total(values: Array, by: Aggregate) -> Array:
        rows = (values * mask).sum(-1)
        if by == "sequence":
            rows /= jnp.maximum(tokens, 1.0)
        return rows.sum() / (longest if by == "constant" else 1)

    weight = tokens.sum() if aggregate == "token" else (tokens > 0).sum().astype(mask.dtype)
    means: Aggregate = "token" if aggregate == "token" else "sequence"
    return PolicySums(
        loss=total(losses, aggregate),
        weight=weight,
        kl=total(kl, means),
        clipped=total(cut.astype(mask.dtype), means),
        ratio=total(rho, means),
    )


def k3(log_probs: Float[Array, "b t"], reference: Float[Array, "b t"]) -> Float[Array, "b t"]:
    r"""Schulman's estimate of :math:`\mathrm{KL}(\pi \| \pi_\text{ref})` from :math:`\pi`'s tokens.

    :math:`e^{r} - r - 1` with :math:`r = \log\pi_\text{ref} - \log\pi`: without bias, and never
    negative (http://joschu.net/blog/kl-approx.html).

    >>> k3(jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.5]]))).tolist()
    [[0.0]]
    """
    apart = reference - log_probs
    return jnp.exp(apart) - apart - 1.0


def penalised(
    rewards: Float[Array, "p q"],
    log_probs: Float[Array, "b t"],
    reference: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    kl_coef: float,
) -> Float[Array, "p q"]:
    r"""Rewards minus the KL penalty for leaving the reference policy, as RLOO has it (its equation
    2).

    .. math:: r_i - \beta \sum_t m_{it} (\log\pi_{it} - \log\pi_{\text{ref},it})

    Args:
        rewards: a row a prompt, a column a completion; b is their product.
        log_probs: of the policy that sampled.
        reference: of the reference policy.
        mask: 1 where a token is the policy's own.
        kl_coef: :math:`\beta`.

    >>> found = penalised(
    ...     jnp.ones((1, 2)), jnp.full((2, 3), -1.0), jnp.full((2, 3), -2.0), jnp.ones((2, 3)), 0.1
    ... )
    >>> [round(float(reward), 4) for reward in found[0]]
    [0.7, 0.7]
    """
    apart = jnp.where(mask > 0, log_probs - reference, 0.0).sum(-1)
    return rewards - kl_coef * apart.reshape(rewards.shape)


def group_advantages(
    rewards: Float[Array, "p q"], *, baseline: Baseline = "mean", scale: Scale = "group"
) -> Float[Array, "p q"]:
    r"""Advantage of each completion over the others of its prompt.

    .. math::

        A_{ij} = \frac{r_{ij} - \bar r_i}{\sigma + 10^{-4}}

    with the group's mean :math:`\bar r_i`, or the mean of the other members for
    ``baseline="leave_one_out"``; :math:`\sigma` is the sample deviation of the group's rewards, of
    the batch's (of its advantages for ``leave_one_out``, as TRL's RLOO does), or absent.

    Args:
        rewards: a row a prompt, a column a completion; at least two columns.
        baseline: what is taken off.
        scale: what is divided by.

    >>> group_advantages(jnp.array([[1.0, 0.0]]), scale="none").tolist()
    [[0.5, -0.5]]
    >>> group_advantages(jnp.array([[1.0, 0.0]]), baseline="leave_one_out", scale="none").tolist()
    [[1.0, -1.0]]
    """
    members = rewards.shape[1]
    assert members > 1, "a group is compared with itself"
    total = rewards.sum(1, keepdims=True)
    others = (total - rewards) / (members - 1)
    gains = rewards - (others if baseline == "leave_one_out" else total / members)
    if scale == "none":
        return gains
    spread = gains if baseline == "leave_one_out" and scale == "batch" else rewards
    axis = 1 if scale == "group" else None
    deviation = jnp.std(spread, axis=axis, ddof=1, keepdims=True)
    return gains / (deviation + SMALLEST_DEVIATION)


def overlong_cost(lengths: Int[Array, "..."], *, longest: int, margin: int) -> Float[Array, "..."]:
    r"""DAPO's soft penalty on long completions, added to their rewards (equation 13).

    .. math::

        R(y) = \begin{cases}
            0 & |y| \le T - M \\ (T - M - |y|) / M & T - M < |y| \le T \\ -1 & |y| > T
        \end{cases}

    Args:
        lengths: tokens of each completion.
        longest: :math:`T`.
        margin: :math:`M`, the last tokens before it, in which the cost grows.

    >>> overlong_cost(jnp.array([4, 8, 10, 11]), longest=10, margin=4).tolist()
    [0.0, -0.5, -1.0, -1.0]
    """
    over = (longest - margin - lengths) / margin
    return jnp.where(lengths > longest, -1.0, jnp.minimum(over, 0.0))


def informative(rewards: Float[Array, "p q"]) -> Float[Array, "p"]:
    """1 for groups whose rewards differ, 0 for those without a learning signal (DAPO's dynamic
    sampling, equation 11).

    >>> informative(jnp.array([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [1.0, 0.0]
    """
    return (jnp.max(rewards, 1) > jnp.min(rewards, 1)).astype(rewards.dtype)
