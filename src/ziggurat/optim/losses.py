"""The next-token loss over a batch."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.kernels.cross_entropy import linear_cross_entropy
from ziggurat.optim.config import LossConfig


class LossMetrics(NamedTuple):
    """Metrics of the loss as sums over a batch; add them over micro-batches, then divide by
    ``tokens``."""

    nll: Float[Array, ""]
    """Sum of negative log-likelihoods of the targets, nats, without the z-loss."""
    z_loss: Float[Array, ""]
    """Sum of the z-loss, coefficient included."""
    log_normalizer: Float[Array, ""]
    """Sum of log-normalisers of the logits."""
    tokens: Float[Array, ""]
    """Sum of ``loss_mask``: what the loss is divided by."""
    correct: Int[Array, ""]
    """Targets that have the largest logit."""


def next_token_loss(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    loss_mask: Float[Array, "b t"],
    config: LossConfig,
    *,
    logit_softcap: float | None = None,
    compute_dtype: jax.typing.DTypeLike | None = None,
    token_shards: int = 1,
) -> tuple[Float[Array, ""], LossMetrics]:
    r"""Sum over a batch of the loss of predicting each token from those before it.

    .. math::

        L = \sum_{bt} m_{bt} (z_{bt} - \ell_{bt, y_{bt}} + \zeta z_{bt}^2)

    with logits :math:`\ell = hW^\top`, log-normaliser :math:`z` and mask :math:`m`. The sum is not
    divided: the caller divides loss and gradient by the total of ``tokens`` over all micro-batches
    of the step, so that accumulation gives exactly the gradient of the undivided batch however
    unevenly the targets are spread.

    Args:
        hidden: activations after the last norm.
        head: output layer, one row per vocabulary entry (the embedding table when tied).
        targets: the token that follows each input.
        loss_mask: 1 where the target counts, 0 where not; other values weigh.
        config: the loss's node.
        logit_softcap: the model's bound on its logits, ``cap * tanh(logits / cap)``, if it has one.
        compute_dtype: of the matmuls' operands, default that of ``hidden``.
        token_shards: number of parts in which the batch is sharded over devices, see
            :func:`ziggurat.kernels.cross_entropy.linear_cross_entropy`.

    Returns:
        The sum to differentiate (float32, nats), and sums for reports.

    Raises:
        ShapeError: shapes do not fit together.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.ones((2, 3, 4)), jnp.zeros((8, 4))
    >>> mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    >>> targets = jnp.zeros((2, 3), jnp.int32)
    >>> loss, metrics = next_token_loss(hidden, head, targets, mask, LossConfig())
    >>> print(f"{loss / metrics.tokens:.4f} of {metrics.tokens:.0f} tokens")
    2.0794 of 3 tokens
    """
    if targets.shape != hidden.shape[:2] or loss_mask.shape != hidden.shape[:2]:
        raise ShapeError(
            "next_token_loss",
            found=f"targets {list(targets.shape)}, loss_mask {list(loss_mask.shape)}",
            expected=f"{list(hidden.shape[:2])} like hidden",
        )
    sums = linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        head,
        targets.reshape(-1),
        loss_mask.reshape(-1),
        z_loss=config.z_loss,
        logit_softcap=logit_softcap,
        chunk_tokens=config.chunk_tokens,
        implementation=config.implementation,
        compute_dtype=compute_dtype,
        token_shards=token_shards,
    )
    metrics = LossMetrics(
        nll=sums.nll,
        z_loss=sums.z_loss,
        log_normalizer=sums.log_normalizer,
        tokens=sums.weight,
        correct=sums.correct,
    )
    return sums.loss, metrics
