"""The definition: all logits at once, plain ``jax.numpy``, gradients by autodiff."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.kernels.cross_entropy.interface import (
    IMPLEMENTATIONS,
    LOG_PROBS,
    LinearCrossEntropy,
    Options,
)


def all_logits(
    hidden: Float[Array, "n d"], weight: Float[Array, "v d"], options: Options
) -> Float[Array, "n v"]:
    """Logits of every token, float32, soft-capped where asked."""
    operands = hidden.astype(options.compute_dtype), weight.astype(options.compute_dtype)
    logits = jnp.einsum("nd,vd->nv", *operands, preferred_element_type=jnp.float32)
    cap = options.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def target_log_probs(
    logits: Float[Array, "n v"], targets: Int[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """Log-probability of the targets (NaN for a target outside the vocabulary), log-normaliser,
    and the targets' logits."""
    inside = (targets >= 0) & (targets < logits.shape[-1])
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    index = jnp.where(inside, targets, 0)
    logit = jnp.take_along_axis(logits, index[:, None], axis=-1)[:, 0]
    return jnp.where(inside, logit - log_normalizer, jnp.nan), log_normalizer, logit


@IMPLEMENTATIONS.register("reference")
def reference(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    options: Options,
) -> LinearCrossEntropy:
    """The sums of :class:`LinearCrossEntropy` with all logits ``[n, v]`` in memory."""
    logits = all_logits(hidden, weight, options)
    log_probs, log_normalizer, logit = target_log_probs(logits, targets)
    counts = weights != 0
    nll = jnp.sum(weights * jnp.where(counts, -log_probs, 0.0))
    z_loss = options.z_loss * jnp.sum(weights * log_normalizer**2)
    stop = jax.lax.stop_gradient
    return LinearCrossEntropy(
        loss=nll + z_loss,
        nll=stop(nll),
        z_loss=stop(z_loss),
        log_normalizer=stop(jnp.sum(weights * log_normalizer)),
        weight=stop(jnp.sum(weights)),
        correct=jnp.sum(counts & (logit >= logits.max(axis=-1)), dtype=jnp.int32),
    )


@LOG_PROBS.register("reference")
def reference_log_probs(
    hidden: Float[Array, "n d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, " n"],
    options: Options,
) -> Float[Array, " n"]:
    """Per-token log-probabilities with all logits in memory."""
    return target_log_probs(all_logits(hidden, weight, options), targets)[0]
